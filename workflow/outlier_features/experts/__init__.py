"""What each expert of a mixture-of-experts model writes."""
