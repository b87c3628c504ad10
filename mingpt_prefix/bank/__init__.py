"""Many prefixes of one base, called by special tokens: `python -m mingpt_prefix.bank`."""
