"""COCO panoptic: one PNG of segment ids (R + 256 G + 65536 B, 0 = ignored) per image, and `panoptic.json`.

One segment for each class of an image: semantic labels do not separate instances. Category ids are trainId + 1. What
comes back may also be plain COCO: annotations with a class and a `segmentation`, runs (RLE) or polygons.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_image
from hmsa_core.io.atomic import write_bytes, write_json
from hmsa_core.io.errors import InputError
from hmsa_core.labels.formats._item import About, Item, Labels, shifted
from hmsa_core.labels.formats._returned import Canvas, Exported, Returned, load_json, of_runs, polygon
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
        known = {"id": number, "image_id": number, "category_id": None}  # without these pycocotools reads nothing
        annotations.append({**known, "file_name": f"{item.name}.png", "segments_info": segments})
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
    """A `panoptic.json` (or its folder), PNG files in the folder of the same name next to it; or plain COCO."""
    where = path / "panoptic.json" if path.is_dir() else path
    value = load_json(where)
    names = {row["id"]: exported.name_of(row["file_name"], where) for row in value["images"]}
    if not all("segments_info" in row for row in value["annotations"]):
        yield from _plain(value, names, exported, str(where))
        return
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


def _plain(value: Any, names: dict[Any, str], exported: Exported, where: str) -> Iterator[Returned]:
    """Images of plain COCO; of overlapping annotations the later ones lie on top."""
    classes = {row["id"]: row["name"] for row in value["categories"]}
    rows: dict[Any, list[Any]] = {number: [] for number in names}
    for row in value["annotations"]:
        rows[row["image_id"]].append(row)
    for number, name in names.items():
        here = f"{where}: {name}"
        canvas = Canvas(exported.label(name), here)
        for row in rows[number]:
            class_id = exported.class_id(classes[row["category_id"]], here)
            for mask in _masks(row["segmentation"], exported.size(name), here):
                canvas.paint(class_id, mask)
        yield Returned(name, canvas.label)


def _masks(drawn: Any, shape: tuple[int, int], where: str) -> Iterator[NDArray[np.bool_]]:
    """Masks HxW of a `segmentation`: one of runs, or one a polygon."""
    if isinstance(drawn, list):
        yield from (polygon(np.array(flat, float).reshape(-1, 2), shape, where) for flat in drawn)
        return
    if tuple(drawn["size"]) != shape:
        raise InputError(f"{where}: a mask is not of {shape[1]}x{shape[0]} pixels, as it was exported")
    yield of_runs(_runs(drawn["counts"]), (shape[1], shape[0]), where).T  # column by column


def _runs(counts: str | list[int]) -> list[int]:
    """Lengths of runs, column by column: a list, or COCO's text, which pycocotools decodes without a check of lengths.

    A character has five bits and says if more follow; from the fourth number on they are differences to the last but
    one.
    """
    if isinstance(counts, list):
        return counts
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if shift > 60 or not 0 <= bits < 64:
            raise ValueError(f"counts {counts[:40]!r}")
        if not bits & 32:
            number -= (1 << shift) * bool(bits & 16)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
