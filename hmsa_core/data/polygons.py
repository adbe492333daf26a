"""Cityscapes' polygon files as label maps, for releases or tools that leave out `labelIds.png`."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hmsa_core import taxonomy
from hmsa_core.io.errors import DecodeError

_FAR = 1 << 20  # pixels; drawing clips, this only keeps absurd vertices in the range of C integers


@cache
def label_ids() -> dict[str, int]:
    """All labels of Cityscapes by name: {"unlabeled": 0, ..., "license plate": -1}."""
    text = resources.files(taxonomy).joinpath("cityscapes.json").read_text("utf-8")
    return {row["name"]: int(row["id"]) for row in json.loads(text)["labels"]}


def rasterise(data: bytes, where: str, *, max_pixels: int) -> NDArray[np.uint8]:
    """Draw a `*_polygons.json` to label ids, uint8 HxW: in list order, later over earlier, canvas 0.

    Objects marked `deleted` and labels with negative ids are skipped; an unknown label that ends with `group`
    is its class without an instance. Vertices outside the picture are clipped by drawing. DecodeError otherwise.
    """
    try:
        value = json.loads(data)
        height, width = int(value["imgHeight"]), int(value["imgWidth"])
        objects = [(str(o["label"]), o["polygon"]) for o in value["objects"] if not o.get("deleted")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DecodeError(f"{where}: not a polygon file ({error!r})", reason="corrupt") from error
    if height <= 0 or width <= 0:
        raise DecodeError(f"{where}: {width}x{height} has no pixels", reason="empty")
    if height * width > max_pixels:
        raise DecodeError(f"{where}: {width}x{height} is more than {max_pixels} pixels", reason="too-large")
    # Pillow's polygons, as in the official script: OpenCV's borders differ by a pixel.
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    ids = label_ids()
    for label, polygon in objects:
        name, vertices = label if label in ids else label.removesuffix("group"), _vertices(polygon, where)
        if name not in ids:
            raise DecodeError(f"{where}: unknown label {label!r}", reason="ids-out-of-range")
        if ids[name] >= 0:
            draw.polygon(vertices, fill=ids[name])
    return np.array(canvas)


def _vertices(polygon: Any, where: str) -> list[tuple[int, int]]:
    try:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
            raise ValueError(f"polygon of shape {points.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise DecodeError(f"{where}: bad polygon ({error})", reason="corrupt") from error
    near = np.clip(np.rint(points), -_FAR, _FAR).astype(int)
    return [(x, y) for x, y in near.tolist()]
