"""The picture of a question: its region outlined in the whole image, and three times as large; a cross at its pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_image
from hmsa_core.io.atomic import write_bytes
from hmsa_core.labels.store.format import png_bytes
from pipeline.review.questions import Region
from pipeline.review.view import StoreView

_ZOOM = 3
_CONTEXT = 4  # the close view is so many regions wide
_OUTLINE = (255, 0, 255)
_CROSS, _CROSS_COLOUR = 9, (255, 255, 0)  # pixels


def draw_question(view: StoreView, name: str, region: Region, cross: tuple[int, int], path: Path) -> None:
    """Write the picture as PNG; an image without its photograph is an InputError that says what to give."""
    row = view.info(name)
    image = cv2.resize(read_image(view.pictures.picture_path(name)), (row["width"], row["height"]))
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[region.window] = region.mask
    height, width = region.mask.shape
    side = min(_CONTEXT * max(height, width), *image.shape[:2])
    top = int(np.clip(region.y + (height - side) // 2, 0, image.shape[0] - side))
    left = int(np.clip(region.x + (width - side) // 2, 0, image.shape[1] - side))
    close = [
        cv2.resize(part[top : top + side, left : left + side], None, fx=_ZOOM, fy=_ZOOM, interpolation=how)
        for part, how in ((image, cv2.INTER_CUBIC), (mask, cv2.INTER_NEAREST))
    ]
    x, y = (_ZOOM * (at - low) + _ZOOM // 2 for at, low in zip(cross, (left, top), strict=True))
    both = [_outlined(image, mask, cross), _outlined(close[0], close[1], (x, y))]
    tall = max(part.shape[0] for part in both)
    padded = [np.pad(part, ((0, tall - part.shape[0]), (0, 0), (0, 0))) for part in both]
    write_bytes(path, png_bytes(np.concatenate(padded, axis=1)))


def outline(region: Region) -> str:
    """The edges of a region's pixels as an SVG path in pixels of the label map, for the page."""
    inside = np.pad(region.mask, 1)
    rows, columns = (np.argwhere(np.diff(inside, axis=axis)) for axis in (0, 1))
    across = (f"M{region.x + x - 1} {region.y + y}h1" for y, x in rows)
    down = (f"M{region.x + x} {region.y + y - 1}v1" for y, x in columns)
    return "".join((*across, *down))


def _outlined(image: NDArray[np.generic], mask: NDArray[np.generic], cross: tuple[int, int]) -> NDArray[np.uint8]:
    contours, _ = cv2.findContours(np.asarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlined = cv2.drawContours(np.array(image, np.uint8), contours, -1, _OUTLINE, 1)
    for colour, thick in (((0, 0, 0), 3), (_CROSS_COLOUR, 1)):
        outlined = cv2.drawMarker(outlined, cross, colour, cv2.MARKER_CROSS, _CROSS, thick)
    return np.asarray(outlined)
