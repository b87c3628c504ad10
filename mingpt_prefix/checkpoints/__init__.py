"""What is saved and loaded whole: weights, run folders, and the state a run resumes from."""
