"""Adapters in the forms of other libraries, out and in: `mingpt-prefix export`."""
