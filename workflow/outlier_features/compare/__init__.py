"""Runs beside one another and beside what was published."""
