"""What stages leave for one another: artifacts written whole, safetensors and Parquet, and the public tables."""
