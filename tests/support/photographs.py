"""A data set of plain folders, a photograph a city, and a workspace over it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.workspace import Workspace

__all__ = ["photograph", "photographs", "work_over"]

TARGET = """  target:
    kind: folder
    root: {root}
    splits: [train, {split}]
    classes: classes.json
    pattern: "(?P<city>[a-z]+)_(?P<sequence>[0-9]+)"
{more}  pretrain: null
  roles:
    learn_splits: [train]
    report_splits: []
    calibrate: [{calibrate}]
    report: [{report}]
    unlabelled_splits: [{split}]
"""


def photograph(root: Path, city: str, split: str, rng: np.random.Generator, size: tuple[int, int] = (48, 32)) -> None:
    """Write noise as the photograph of a city, with a label of three classes if it is one to learn from."""
    noise = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(root / "images" / split / f"{city}_0001.png")
    if split == "train":
        truth = rng.integers(0, 3, size[::-1], dtype=np.uint8)
        Image.fromarray(truth).save(root / "labels" / split / f"{city}_0001.png")


def photographs(
    root: Path, learned: Iterable[str], others: Iterable[str], split: str, seed: int, size: tuple[int, int] = (48, 32)
) -> Path:
    """Photographs of cities, those of `others` without labels in a split of their own."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for folder in ("images/train", f"images/{split}", "labels/train"):
        (root / folder).mkdir(parents=True)
    for city in learned:
        photograph(root, city, "train", rng, size)
    for city in others:
        photograph(root, city, split, rng, size)
    classes = [{"id": i, "name": n, "colour": [i, i, i]} for i, n in enumerate(("road", "car", "sky"))]
    (root / "classes.json").write_text(json.dumps({"dataset": "mine", "classes": classes, "ignore_id": 255}))
    return root


def work_over(ws: Path, root: Path, split: str, *, calibrate: str, report: str, more: str = "") -> Workspace:
    """The workspace over these photographs, with roles by city and without a pretraining set."""
    params = ws / "params.yaml"
    before, rest = params.read_text().split("  target:\n", 1)
    target = TARGET.format(root=root, split=split, calibrate=calibrate, report=report, more=more)
    after = rest[rest.index("\n# prepare: index") :].replace("overrides: {road: 0.5, sky: 0.5}", "overrides: {}")
    params.write_text(before + target + after)
    return Workspace(ws)
