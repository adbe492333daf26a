"""Measurements anyone can repeat: `make bench`, or each script alone."""
