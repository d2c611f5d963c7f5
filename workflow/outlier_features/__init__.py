"""Outlier features and massive activations of transformer language models."""

__version__ = "0.1.0"
