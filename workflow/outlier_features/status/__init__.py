"""How far the runs of a configuration have come: what is done, at work, failed or missing."""
