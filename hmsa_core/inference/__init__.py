"""Inference: labelling, pictures, evaluation, all by one fusion over scales. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hmsa_core.inference.evaluation.evaluate_folder import evaluate
    from hmsa_core.inference.folder.label_folder import label
    from hmsa_core.inference.network.predictor import Predictor, label_image

__all__ = ["Predictor", "evaluate", "label", "label_image"]

_HOMES = {
    "Predictor": "network.predictor",
    "evaluate": "evaluation.evaluate_folder",
    "label": "folder.label_folder",
    "label_image": "network.predictor",
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name` at its first use: not all of them need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
