"""The forward pass over a chunk of sequences: activations and token losses."""
