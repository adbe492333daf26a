"""Files of each format as a released version wrote them, and what is in them (README.md)."""
