"""Training: the loop, its data, its state, several ranks."""
