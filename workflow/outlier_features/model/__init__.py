"""A transformers model on a device, and where in its blocks each activation is, found by structure."""
