"""Adapters in the forms of other libraries, out and in: `python -m mingpt_prefix.export`."""
