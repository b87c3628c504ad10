"""New tokens after prompts: the cache, the choice of tokens, beam search."""
