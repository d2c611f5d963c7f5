"""The figures, each a function of the public tables."""
