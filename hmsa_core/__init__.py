"""Hierarchical multi-scale attention for semantic segmentation: models, losses, labels, engine."""

__version__ = "0.1.0"
