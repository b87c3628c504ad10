"""The tasks a run learns and is judged by, and the pipeline from tables to sentences."""
