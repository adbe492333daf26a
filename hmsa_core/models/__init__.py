"""Models: networks, multi-scale fusion, safe weight files. Names are loaded on first use (no torch at import)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmsa_core.models.checkpoint import initialise_from, load, read_meta, save

if TYPE_CHECKING:
    from hmsa_core.models.foreign import ImportReport, import_checkpoint, load_nvidia
    from hmsa_core.models.model import ModelOutput, MultiScaleModel, Prediction, ScaleOutput, as_kind
    from hmsa_core.models.pretrained import build

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
    "foreign": ("ImportReport", "import_checkpoint", "load_nvidia"),
    "model": ("ModelOutput", "MultiScaleModel", "Prediction", "ScaleOutput", "as_kind"),
    "pretrained": ("build",),
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name` on first use: `read_meta` needs no torch."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
