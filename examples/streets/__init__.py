"""Synthetic street scenes in the exact layouts of Cityscapes and Mapillary Vistas (see docs/demo-data.md)."""

from examples.streets.generate import generate
from examples.streets.spec import City, DemoSpec, default_spec

__all__ = ["City", "DemoSpec", "default_spec", "generate"]
