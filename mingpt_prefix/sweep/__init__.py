"""Many prefixes of one frozen model trained in one run, each as a run of its own would train it."""
