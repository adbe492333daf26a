"""Hierarchical multi-scale attention for semantic segmentation: models, training, labels with measured thresholds.

The ten public names, each with an example in docs/api.md. They are loaded when first used, so the import costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hmsa_core.inference import evaluate, label
    from hmsa_core.labels import ConfidenceCode, LabelStore, LabelStoreWriter, ThresholdPolicy, calibrate
    from hmsa_core.models import build, load
    from hmsa_core.training import train

_HOMES = {
    "build": "models",
    "load": "models",
    "train": "training",
    "label": "inference",
    "evaluate": "inference",
    "calibrate": "labels",
    "ConfidenceCode": "labels",
    "LabelStore": "labels",
    "LabelStoreWriter": "labels",
    "ThresholdPolicy": "labels",
}
__all__ = [
    "ConfidenceCode",
    "LabelStore",
    "LabelStoreWriter",
    "ThresholdPolicy",
    "build",
    "calibrate",
    "evaluate",
    "label",
    "load",
    "train",
]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"hmsa_core.{_HOMES[name]}"), name)
