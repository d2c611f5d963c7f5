"""What outliers cost when a model is quantized: inputs of linear layers, schemes, remedies, losses, and exports."""
