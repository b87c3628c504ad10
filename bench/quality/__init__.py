"""What the benchmarks of sentences share: runs of train.py and their scores; the bank's tasks."""
