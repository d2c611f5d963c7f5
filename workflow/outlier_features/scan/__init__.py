"""One pass over activations and the statistics that it leaves, wherever the activations lie."""
