"""Ablations, results and benchmarks: what the figures of this project come from. Not part of the package."""
