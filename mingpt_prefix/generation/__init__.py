"""Generation: the KV cache, greedy decoding and sampling, beam search."""
