"""Models: networks, multi-scale fusion, safe weight files. Names are loaded on first use (no torch at import)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmsa_core.models.checkpoint import load, read_meta, save

if TYPE_CHECKING:
    from hmsa_core.models.builder import as_kind, build
    from hmsa_core.models.hmsa import ModelOutput, MultiScaleModel, Prediction, ScaleOutput
    from hmsa_core.models.initialise import initialise_from
    from hmsa_core.models.weights import ImportReport, import_checkpoint, load_nvidia

__all__ = [
    "ImportReport",
    "ModelOutput",
    "MultiScaleModel",
    "Prediction",
    "ScaleOutput",
    "as_kind",
    "build",
    "import_checkpoint",
    "initialise_from",
    "load",
    "load_nvidia",
    "read_meta",
    "save",
]

_HOMES = {
    "ImportReport": "weights",
    "ModelOutput": "hmsa",
    "MultiScaleModel": "hmsa",
    "Prediction": "hmsa",
    "ScaleOutput": "hmsa",
    "as_kind": "builder",
    "build": "builder",
    "import_checkpoint": "weights",
    "initialise_from": "initialise",
    "load_nvidia": "weights",
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name` when it is first asked for: `read_meta` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
