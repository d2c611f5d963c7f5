"""The token sequences of a run, and each token in its text."""
