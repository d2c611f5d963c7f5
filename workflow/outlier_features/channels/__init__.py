"""The linear layers of a model, and the statistics of what they read, taken while it runs."""
