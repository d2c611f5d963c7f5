"""Weights as quantized checkpoints hold them, one module a format, and what they stand for."""
