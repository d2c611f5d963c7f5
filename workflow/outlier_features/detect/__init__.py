"""Hits and statistics of each chunk, and the tables of layers made of all chunks."""
