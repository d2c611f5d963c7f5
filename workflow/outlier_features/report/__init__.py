"""The report and the pages of its figures."""
