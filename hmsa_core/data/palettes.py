"""Palette label maps whose colours tell another class than their numbers: colour masks saved with a palette."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from hmsa_core.data.decode import holds_train_ids, read_label_ids
from hmsa_core.data.headers import guarded, opened
from hmsa_core.io.errors import DecodeError
from hmsa_core.taxonomy import IGNORE, ClassTable

__all__ = ["check_palette"]

Colour = tuple[int, int, int]


def check_palette(path: str | os.PathLike[str], classes: ClassTable, *, max_pixels: int) -> None:
    """Refuse a palette image whose numbers are no ids although its colours are: numbers are what is read.

    Args:
        path: a label map that can be read; one without a palette passes.
        classes: ids and colours.
        max_pixels: as `read_label`.

    Raises:
        DecodeError: a number that occurs has the colour of another class, or the grey value of another id.
    """
    where = Path(path)
    if where.suffix.lower() == ".json":
        return
    with opened(where, max_pixels, "") as file, guarded(lambda: Image.open(file), str(where)) as image:
        if image.mode != "P":
            return
        flat = image.getpalette("RGB") or []
    palette: list[Colour] = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
    used = [int(v) for v in np.unique(read_label_ids(where, max_pixels=max_pixels)) if v < len(palette)]
    ids = range(classes.num_classes) if holds_train_ids(where.name) else classes.train_to_id
    colours: dict[int, Colour] = dict(zip(map(int, ids), classes.colours, strict=False))
    known = set(colours.values())
    for number in used:
        if number in colours and palette[number] in known and colours[number] != palette[number]:
            other = next(i for i, colour in colours.items() if colour == palette[number])
            raise DecodeError(
                f"{where}: number {number} has the colour of class {other} in its palette",
                reason="wrong-mode",
                hint="a colour mask that was saved with a palette: write the ids themselves, as 8-bit grey",
            )
    greys = {number: palette[number][0] for number in used if len(set(palette[number])) == 1}
    valid = {*colours, classes.ignored_id, IGNORE}
    if len(greys) == len(used) and valid.issuperset(greys.values()) and any(i != grey for i, grey in greys.items()):
        raise DecodeError(
            f"{where}: a grey map in palette form, whose numbers are not its grey values",
            reason="wrong-mode",
            hint="write it as 8-bit grey without a palette",
        )
