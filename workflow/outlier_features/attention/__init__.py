"""Attention patterns and sinks, from a model, a run or a dump."""
