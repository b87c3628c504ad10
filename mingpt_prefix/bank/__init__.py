"""Many prefixes of one base, called by special tokens: `mingpt-prefix bank`."""
