"""How near texts come to their references: `python -m mingpt_prefix.metrics`."""
