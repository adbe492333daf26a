"""A data set of plain folders, a photograph a city, and a workspace over it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.stages import prepare
from pipeline.workspace.new_workspace import InitRequest, init_workspace
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params


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


def work_over(
    ws: Path, root: Path, split: str, *, calibrate: str, report: str, changes: Mapping[str, Any] | None = None
) -> Workspace:
    """A workspace of profile tiny over these photographs, with roles by city and without a pretraining set."""
    if not ws.exists():
        init_workspace(InitRequest(ws, "tiny", make_data=False))
    target = {"kind": "folder", "root": str(root), "splits": ["train", split], "classes": "classes.json"}
    roles = {"learn_splits": ["train"], "report_splits": [], "unlabelled_splits": [split]}
    of_data = {
        "data.target": target | {"pattern": "(?P<city>[a-z]+)_(?P<sequence>[0-9]+)"},
        "data.pretrain": None,
        "data.roles": roles | {"calibrate": list(calibrate), "report": list(report)},
        "calibrate.overrides": {},
    }
    return edited(Workspace(ws), of_data | dict(changes or {}))


def prepared(folder: Path) -> Workspace:
    """A workspace after `prepare`: four photographs to learn from, two each to calibrate, to report, without labels."""
    data = photographs(folder / "data", "abcdefgh", "ij", "extra", 7)
    changes = {"data.target.max_bad": 0.5, "pseudo_label.threshold": 0.5}
    ws = work_over(folder / "ws", data, "extra", calibrate="ef", report="gh", changes=changes)
    prepare.run(ws)
    return ws


def edited(ws: Workspace, changes: Mapping[str, Any]) -> Workspace:
    """The workspace with other values of dotted keys; a Workspace reads its parameters once."""
    set_params(ws.root, changes)
    return Workspace(ws.root)
