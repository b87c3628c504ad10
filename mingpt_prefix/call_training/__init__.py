"""Teaching a model when to call which prefix: `python -m mingpt_prefix.call_training`."""
