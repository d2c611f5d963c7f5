"""Activations that some other program saved."""
