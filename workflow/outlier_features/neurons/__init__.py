"""What every neuron answers to: its statistics and the sequences that make it largest and smallest."""
