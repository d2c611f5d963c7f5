"""What the model predicts without outlier dims and super weights."""
