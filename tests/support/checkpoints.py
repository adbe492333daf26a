"""Checkpoint folders as registry, gate and doctor see them: whole, but of no model that anybody builds."""

from __future__ import annotations

from pathlib import Path

from hmsa_core.io import atomic, sealed
from hmsa_core.lineage import LearnedImage, Lineage
from hmsa_core.models.checkpoint import FORMAT, VERSION


def checkpoint(folder: Path, weights: bytes = b"weights", lineage: Lineage | None = None, **described: object) -> Path:
    """Write a folder with these bytes for weights; `described` goes into model.json, too."""
    sha = atomic.write_bytes(folder / "model.safetensors", weights)
    learned = {} if lineage is None else lineage.summary(lineage.save(folder / "lineage.json"))
    meta = {"format": FORMAT, "version": VERSION, "kind": "single", "trunk": "none", "num_classes": 3, "options": {}}
    sealed.write(folder / "model.json", meta | {"weights_sha256": sha, "lineage": learned} | described)
    return folder


def taught(source: str, *parents: str) -> Lineage:
    """The lineage of what learned from one image, `fine` or `pseudo`, from parents with these weights (SHA-256)."""
    image = LearnedImage("0" * 64, "a", "target", "0" * 16, "", -1, source)
    return Lineage({image.sha256: image}, parents)
