"""The generated Cityscapes as a folder of one's own: images, label maps of six classes, new images, class names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["write_plain"]

CLASSES = {"road": 7, "sidewalk": 8, "building": 11, "vegetation": 21, "sky": 23, "car": 26}  # name: id in Cityscapes
_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def write_plain(cityscapes: Path, out: Path) -> None:
    """Write `out`/{images,labels,new} and `out`/classes.txt; label maps hold 0..5, and 255 for everything else."""
    table = np.full(256, 255, np.uint8)
    table[list(CLASSES.values())] = range(len(CLASSES))
    for folder in ("images", "labels", "new"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, folder in (("train", "images"), ("test", "images"), ("train_extra", "new")):
        for image in sorted(cityscapes.glob(f"leftImg8bit/{split}/*/*{_IMAGE}")):
            shutil.copy(image, out / folder / image.name.replace(_IMAGE, ".png"))
        for label in sorted(cityscapes.glob(f"gtFine/{split}/*/*{_LABEL}")):
            ids = np.asarray(Image.open(label))
            Image.fromarray(table[ids]).save(out / "labels" / label.name.replace(_LABEL, ".png"))
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), "utf-8")
