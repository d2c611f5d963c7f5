"""The gallery: a page for each neuron, dim and sequence that is worth a look, with the text in their colours."""
