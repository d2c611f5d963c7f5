"""Rule `location`: values over a threshold where enough layers hit, with exact quartiles."""
