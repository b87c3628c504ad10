"""What makes the same numbers faster, on one device or several."""
