"""From annotated objects to label images, by the rules of the two data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from examples.streets.canvas import LabelObject, Polygon
from examples.streets.kinds import KINDS, ClassEntry, ClassTable, cityscapes

__all__ = ["NamedPolygon", "cityscapes_polygons", "draw_cityscapes", "draw_vistas", "polygon_json"]


@dataclass(frozen=True)
class NamedPolygon:
    """A polygon under a data set's class name (or a Cityscapes name ending with `group`)."""

    name: str
    polygon: Polygon


def cityscapes_polygons(objects: Iterable[LabelObject]) -> list[NamedPolygon]:
    """Rename objects to Cityscapes labels; kinds that are not annotated there are left out."""
    found = []
    for item in objects:
        name = KINDS[item.kind][0]
        if name is not None:
            found += [NamedPolygon(name, polygon) for polygon in item.polygons]
    return found


def polygon_json(size: tuple[int, int], polygons: Sequence[NamedPolygon]) -> dict[str, object]:
    """Content of a `_polygons.json`; `size` = (height, width)."""
    objects = [{"label": item.name, "polygon": [list(point) for point in item.polygon]} for item in polygons]
    return {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}


def _class_of(name: str, table: ClassTable) -> tuple[ClassEntry, bool]:
    """Class entry, and whether the name stands for a group (no instance of its own)."""
    try:
        return table.by_name(name), False
    except KeyError:
        return table.by_name(name.removesuffix("group")), True


def draw_cityscapes(
    size: tuple[int, int], polygons: Sequence[NamedPolygon]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """(labelIds, instanceIds) of polygons drawn in order, as the official scripts draw them.

    Classes with instances get id * 1000 + n unless they are a group; negative ids are not drawn.
    """
    table = cityscapes()
    labels = Image.new("L", (size[1], size[0]), table.void_id)
    instances = Image.new("I", (size[1], size[0]), table.void_id)
    label_pen, instance_pen = ImageDraw.Draw(labels), ImageDraw.Draw(instances)
    counts: dict[int, int] = {}
    for item in polygons:
        entry, is_group = _class_of(item.name, table)
        if entry.id < 0:
            continue
        number = entry.id
        if entry.has_instances and not is_group:
            number = entry.id * 1000 + counts.get(entry.id, 0)
            counts[entry.id] = counts.get(entry.id, 0) + 1
        label_pen.polygon(item.polygon, fill=entry.id)
        instance_pen.polygon(item.polygon, fill=number)
    return np.array(labels), np.array(instances).astype(np.uint16)


def draw_vistas(
    size: tuple[int, int], objects: Iterable[LabelObject], table: ClassTable, names: dict[str, str]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """(labels, instances) in Vistas' coding: instance image = label * 256 + instance number.

    `names` maps a v1.2 name key to this table's name where they differ.
    """
    labels = Image.new("L", (size[1], size[0]), table.void_id)
    instances = Image.new("I", (size[1], size[0]), table.void_id * 256)
    label_pen, instance_pen = ImageDraw.Draw(labels), ImageDraw.Draw(instances)
    counts: dict[int, int] = {}
    for item in objects:
        key = KINDS[item.kind][1]
        if key is None:
            continue
        entry = table.by_name(names.get(key, key))
        number = counts.get(entry.id, 0) % 256 if entry.has_instances else 0
        counts[entry.id] = number + 1
        for polygon in item.polygons:
            label_pen.polygon(polygon, fill=entry.id)
            instance_pen.polygon(polygon, fill=entry.id * 256 + number)
    return np.array(labels), np.array(instances).astype(np.uint16)
