"""Which dims the named rules select, how they rise and fall, which two runs share, and the mask of them."""
