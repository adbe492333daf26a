"""Where a crop lies: placement in the scaled image, and the window of the stored image that it needs.

Coordinates are pixels, x to the right, y down. A placement is the crop's upper left corner in the scaled
image; negative values, or a crop that reaches beyond the other side, mean padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Placement", "Window", "place", "window"]

Randint = Callable[[int, int], int]  # both ends included
Placement = Literal["mended", "released"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Window:
    """Rows y0..y1 and columns x0..x1 of the stored image fill `height` x `width` pixels at (top, left) of the crop."""

    y0: int
    y1: int
    x0: int
    x1: int
    top: int
    left: int
    height: int
    width: int


def place(
    scaled: Size, crop: Size, centre_xy: tuple[int, int] | None, randint: Randint, *, rule: Placement = "mended"
) -> tuple[int, int]:
    """(top, left) of a crop in the scaled image.

    Args:
        scaled: size of the scaled image.
        crop: size of the crop.
        centre_xy: a point of the scaled image that the crop should cover, None = anywhere.
        randint: source of random numbers; asked for x first, then y.
        rule: "mended" covers the point for sure and centres an image that is smaller than the crop. "released"
            does as the released code: its padding does not move the point, and the point may fall just outside.
    """
    if scaled == crop:
        return 0, 0
    centre_y, centre_x = (None, None) if centre_xy is None else (centre_xy[1], centre_xy[0])
    along = _along_released if rule == "released" else _along
    left = along(scaled[1], crop[1], centre_x, randint)
    return along(scaled[0], crop[0], centre_y, randint), left


def _along(length: int, crop: int, centre: int | None, randint: Randint) -> int:
    if length <= crop:
        return -((crop - length) // 2)
    if centre is None:
        return randint(0, length - crop)
    return min(max(randint(centre - crop + 1, centre), 0), length - crop)


def _along_released(length: int, crop: int, centre: int | None, randint: Randint) -> int:
    pad = (crop - length) // 2 + 1 if crop > length else 0
    padded = length + 2 * pad
    if centre is None:
        start = 0 if padded == crop else randint(0, padded - crop)
    else:
        start = min(max(randint(centre - crop, centre), 0), padded - crop)
    return start - pad


def window(stored: Size, scaled: Size, crop: Size, top_left: tuple[int, int]) -> Window:
    """The part of the stored image that a placed crop shows; whole pixels, so its scale is off by < 1 pixel."""
    y0, y1, top, height = _span(stored[0], scaled[0], crop[0], top_left[0])
    x0, x1, left, width = _span(stored[1], scaled[1], crop[1], top_left[1])
    return Window(y0, y1, x0, x1, top, left, height, width)


def _span(stored: int, scaled: int, crop: int, start: int) -> tuple[int, int, int, int]:
    first, last = max(start, 0), min(start + crop, scaled)
    low = min(round(first * stored / scaled), stored - 1)
    high = min(max(round(last * stored / scaled), low + 1), stored)
    return low, high, first - start, last - first
