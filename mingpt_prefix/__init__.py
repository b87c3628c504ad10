"""A compact GPT-2 that learns table-to-text by prefix-tuning."""
