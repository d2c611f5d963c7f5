"""Which dims the named rules select, how they rise and fall, and which two runs share."""
