"""Tables, text and token ids: what is read, and how it is spelled for a model."""
