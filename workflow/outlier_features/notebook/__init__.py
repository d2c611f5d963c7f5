"""A run as an object, and a model in hand measured as a run would: what `import outlier_features` gives."""
