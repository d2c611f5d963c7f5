"""A run as a whole: its configuration, what failed or was killed, what it cost, and whether its files are sound."""
