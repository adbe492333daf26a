"""Synthetic street scenes in the exact layouts of Cityscapes and Mapillary Vistas (see README.md)."""

from examples.streets.generate import generate
from examples.streets.spec import City, DemoSpec, default_spec

__all__ = ["City", "DemoSpec", "default_spec", "generate"]
