"""Examples that the demo and the tests use. Not part of the package."""
