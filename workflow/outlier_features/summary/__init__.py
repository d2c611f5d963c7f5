"""What a run found, in one JSON file and in words."""
