"""What a run found: in one JSON file, in words, and as a mask of dims."""
