"""The files that hold what is learned beside a frozen model."""
