"""The gains of norms, and what they are at the selected dims."""
