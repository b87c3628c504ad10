"""The ways to do a thing that are timed side by side: ours, and the peers'."""
