"""Where massive activations come from: block, part, checkpoint, neuron and weight."""
