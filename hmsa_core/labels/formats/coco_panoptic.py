"""COCO panoptic: one PNG of segment ids (R + 256 G + 65536 B, 0 = ignored) per image, and `panoptic.json`.

One segment for each class of an image: semantic labels do not separate instances. Category ids are trainId + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmsa_core.data.decode import read_image
from hmsa_core.io.atomic import write_bytes, write_json
from hmsa_core.io.errors import InputError
from hmsa_core.labels.formats._item import About, Item, Labels, shifted
from hmsa_core.labels.formats._returned import Exported, Returned, load_json
from hmsa_core.labels.store.format import png_bytes
from hmsa_core.taxonomy import IGNORE


def write(folder: Path, about: About, items: Iterator[Item]) -> None:
    """`images/`, `panoptic/` and `panoptic.json`."""
    table = about.classes
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        write_bytes(folder / "images" / item.file, item.picture)
        ids = shifted(item.label)
        write_bytes(folder / "panoptic" / f"{item.name}.png", png_bytes(np.stack([ids, ids * 0, ids * 0], axis=-1)))
        height, width = ids.shape
        images.append({"id": number, "file_name": item.file, "height": height, "width": width})
        segments = [_segment(ids, value) for value in np.unique(ids[ids > 0]).tolist()]
        annotations.append({"image_id": number, "file_name": f"{item.name}.png", "segments_info": segments})
    categories = [
        {"id": i + 1, "name": name, "supercategory": group, "isthing": 0, "color": list(colour)}
        for i, (name, group, colour) in enumerate(zip(table.classes, table.groups, table.colours, strict=True))
    ]
    write_json(
        folder / "panoptic.json",
        {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories},
    )


def _segment(ids: Labels, value: int) -> dict[str, Any]:
    mask = ids == value
    box = list(cv2.boundingRect(mask.astype(np.uint8)))
    return {"id": value, "category_id": value, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}


def read(path: Path, exported: Exported) -> Iterator[Returned]:
    """A `panoptic.json` (or its folder), with its PNG files in the folder of the same name beside it."""
    where = path / "panoptic.json" if path.is_dir() else path
    value = load_json(where)
    names = {row["id"]: exported.name_of(row["file_name"], where) for row in value["images"]}
    classes = {row["id"]: exported.class_id(row["name"], str(where)) for row in value["categories"]}
    for row in value["annotations"]:
        name, file = names[row["image_id"]], str(row["file_name"])
        if Path(file).name != file:
            raise InputError(f"{where}: {file[:200]!r} is not a plain file name")
        png = where.with_suffix("") / file
        yield Returned(
            name, _label(png, name, {s["id"]: classes[s["category_id"]] for s in row["segments_info"]}, exported)
        )


def _label(png: Path, name: str, classes: dict[int, int], exported: Exported) -> Labels:
    height, width = exported.size(name)
    rgb = read_image(png, max_pixels=height * width).astype(np.uint32)
    ids, places = np.unique(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], return_inverse=True)
    unknown = [i for i in ids.tolist() if i and i not in classes]
    if unknown:
        raise InputError(f"{png}: segment {unknown[0]} is not in the JSON file ({len(unknown)} such segments)")
    label = np.array([classes[i] if i else IGNORE for i in ids.tolist()], np.uint8)[places].reshape(rgb.shape[:2])
    return exported.check(name, label, str(png))
