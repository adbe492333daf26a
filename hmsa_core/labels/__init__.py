"""Labels you can trust: store, confidence code, measured thresholds, merging with human labels.

Names are looked up when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmsa_core.labels.codes import ConfidenceCode
    from hmsa_core.labels.policy import ThresholdPolicy
    from hmsa_core.labels.stats import StoreStatistics
    from hmsa_core.labels.store import LabelStore, Problem
    from hmsa_core.labels.writer import LabelStoreWriter

__all__ = ["ConfidenceCode", "LabelStore", "LabelStoreWriter", "Problem", "StoreStatistics", "ThresholdPolicy"]

_HOME = {
    "ConfidenceCode": "codes", "LabelStore": "store", "LabelStoreWriter": "writer", "Problem": "store",
    "StoreStatistics": "stats", "ThresholdPolicy": "policy",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
