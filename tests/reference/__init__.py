"""Recorded numbers of the published recipe (README.md) and what is needed to compare with them."""
