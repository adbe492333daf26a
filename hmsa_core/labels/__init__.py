"""Labels you can trust: store, confidence code, measured thresholds, merging with human labels.

Names are looked up when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmsa_core.labels.calibration import calibrate
    from hmsa_core.labels.store.codes import ConfidenceCode
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.labels.store.sidecar import StoreStatistics
    from hmsa_core.labels.store.writer import LabelStoreWriter
    from hmsa_core.labels.thresholds.policy import ThresholdPolicy

__all__ = ["ConfidenceCode", "LabelStore", "LabelStoreWriter", "StoreStatistics", "ThresholdPolicy", "calibrate"]

_HOME = {
    "ConfidenceCode": "store.codes",
    "LabelStore": "store.reader",
    "LabelStoreWriter": "store.writer",
    "StoreStatistics": "store.sidecar",
    "ThresholdPolicy": "thresholds.policy",
    "calibrate": "calibration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
