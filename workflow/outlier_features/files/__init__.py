"""What stages leave for one another: artifacts written whole, safetensors, Parquet and tables."""
