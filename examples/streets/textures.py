"""Materials: functions from texture coordinates in millimetres to colours, in integer arithmetic.

A material gets u (along the surface) and v (up, or away from the camera on the ground) of n pixels and returns (n, 3)
colours, or (n, 4) with an opacity for what one can see through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.streets.canvas import Colour, IntArray, Material
from examples.streets.rng import NOISE_SIZE, hash_grid, noise_tile

__all__ = [
    "FacadeStyle",
    "asphalt",
    "banded",
    "bars",
    "bricks",
    "coped",
    "facade",
    "foliage",
    "mix",
    "panels",
    "plain",
    "ribs",
    "slabs",
]


def mix(a: Colour, b: Colour, share: int) -> Colour:
    """Colour between a (share 0) and b (share 256)."""
    red, green, blue = (x + ((y - x) * share >> 8) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _noise(u: IntArray, v: IntArray, level: int, cell_mm: int, salt: int) -> IntArray:
    tile = noise_tile(level)
    return tile[(v // cell_mm + salt * 37) % NOISE_SIZE, (u // cell_mm + salt * 91) % NOISE_SIZE].astype(np.int64)


def _grey(colour: Colour, change: IntArray) -> IntArray:
    return np.array(colour, dtype=np.int64)[None, :] + change[:, None]


def plain(colour: Colour, salt: int, amount: int = 8, cell_mm: int = 60) -> Material:
    """One colour with fine and broad blotches."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        fine = _noise(u, v, 1, cell_mm, salt) * amount
        broad = _noise(u, v, 4, cell_mm * 2, salt + 5) * amount
        return _grey(colour, (fine + broad) >> 6)

    return shade


def asphalt(colour: Colour, salt: int) -> Material:
    """Road surface: fine grain, broad patches, darker repaired rectangles, worn wheel tracks."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        change = (_noise(u, v, 0, 35, salt) * 9 + _noise(u, v, 4, 180, salt + 3) * 16) >> 6
        patch = hash_grid((u + 900) // 2300, v // 5200, salt) < 22
        tracks = (np.abs((u + 2000) % 3300 - 1650) < 500) & ((u // 3300) % 2 == 0)
        return _grey(colour, change - 14 * patch - 5 * tracks)

    return shade


def slabs(colour: Colour, salt: int, size_mm: int = 600, seam: int = 22) -> Material:
    """Paving slabs with seams and slightly different stones."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        stone = (hash_grid(u // size_mm, v // size_mm, salt) - 128) >> 3
        change = stone + ((_noise(u, v, 1, 45, salt) * 8) >> 6)
        line = (u % size_mm < 70) | (v % size_mm < 70)
        return _grey(colour, change - seam * line)

    return shade


def bricks(
    colour: Colour, salt: int, length_mm: int = 480, height_mm: int = 160, joint: int = 24, mottle: int = 3
) -> Material:
    """Courses of bricks or blocks, each second one shifted by half a brick; a lower `mottle`: they differ more."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        course = v // height_mm
        shifted = u + (course % 2) * (length_mm // 2)
        stone = (hash_grid(shifted // length_mm, course, salt) - 128) >> mottle
        line = (shifted % length_mm < 40) | (v % height_mm < 30)
        change = stone + ((_noise(u, v, 3, 90, salt) * 10) >> 6)
        return _grey(colour, change - joint * line)

    return shade


def panels(colour: Colour, stripe: Colour, salt: int, width_mm: int, band: tuple[int, int]) -> Material:
    """Sheet panels with seams and one coloured band (lorry bodies, containers, modern walls)."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        change = (_noise(u, v, 3, 140, salt) * 10) >> 6
        out = _grey(colour, change)
        inside = (v >= band[0]) & (v < band[1])
        out[inside] = _grey(stripe, change)[inside]
        out -= 22 * ((u % width_mm) < 45)[:, None]
        return out

    return shade


def ribs(base: Material, pitch_mm: int, depth: int = 40) -> Material:
    """Upright corrugations over another material: half of each pitch lies in shade (lorry bodies)."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        return np.asarray(base(u, v) - depth * ((u % pitch_mm) < pitch_mm // 2)[:, None])

    return shade


@dataclass(frozen=True)
class FacadeStyle:
    """Windows of a facade; all lengths in millimetres."""

    wall: Colour
    frame: Colour
    glass: Colour
    bay: int
    floor: int
    sill: int
    window: tuple[int, int]
    ground_floor: int = 0
    shop: Colour = (60, 60, 64)
    courses: int = 0
    lit: int = 0


def facade(style: FacadeStyle, salt: int) -> Material:
    """A wall with rows of windows, a shop band on the ground floor, and courses of bricks where wanted."""
    width, height = style.window
    base = bricks(style.wall, salt, 2 * style.courses, style.courses, 12) if style.courses else plain(style.wall, salt)

    def shade(u: IntArray, v: IntArray) -> IntArray:
        out = base(u, v)
        column, level = u // style.bay, (v - style.ground_floor) // style.floor
        x, y = u % style.bay - (style.bay - width) // 2, (v - style.ground_floor) % style.floor - style.sill
        upper = v >= style.ground_floor
        framed = upper & (x >= -90) & (x < width + 90) & (y >= -90) & (y < height + 90)
        glass = upper & (x >= 0) & (x < width) & (y >= 0) & (y < height) & (np.abs(x - width // 2) > 35)
        out[framed] = _grey(style.frame, np.zeros_like(u))[framed]
        cell = hash_grid(column, level, salt)
        shine = ((cell - 128) >> 3) + (y * 24 // max(height, 1)) - 12
        out[glass] = _grey(style.glass, shine)[glass]
        out[glass & (cell < style.lit)] = (236, 204, 128)
        if style.ground_floor:
            _shop_band(style, salt, u, v, out)
        return out

    return shade


def _shop_band(style: FacadeStyle, salt: int, u: IntArray, v: IntArray, out: IntArray) -> None:
    wide = style.bay * 3 // 2
    x = u % wide
    pane = (v >= 500) & (v < style.ground_floor - 700) & (x > 250) & (x < wide - 250)
    out[pane] = _grey(style.shop, (hash_grid(u // wide, v * 0, salt + 9) - 128) >> 2)[pane]
    sign = (v >= style.ground_floor - 600) & (v < style.ground_floor - 100)
    tint = hash_grid(u // (2 * wide), v * 0, salt + 10)
    board = np.stack([60 + tint // 2, 60 + (tint * 7 % 256) // 2, 60 + (tint * 13 % 256) // 2], axis=1)
    out[sign] = board[sign]


def foliage(colour: Colour, salt: int, cell_mm: int = 110) -> Material:
    """Leaves: strong clumps of light and dark, a little yellow in the light."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        clump = (_noise(u, v, 2, cell_mm, salt) * 30 + _noise(u, v, 0, cell_mm // 2, salt + 2) * 12) >> 6
        out = _grey(colour, clump)
        out[:, 0] += clump >> 2
        out[:, 2] -= clump >> 2
        return out

    return shade


def coped(base: Material, colour: Colour, top_mm: int, pitch_mm: int) -> Material:
    """A free-standing wall: light coping along the top and a pillar every few metres."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        out = base(u, v)
        out[u % pitch_mm < 420] -= 26
        out[v > top_mm - 230] = mix(colour, (232, 230, 224), 150)
        return out

    return shade


def banded(base: Material, stripe: Colour, band: tuple[int, int], doors: tuple[int, ...] = ()) -> Material:
    """A vehicle's flank with a coloured band at some height and dark doors at some places along it."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        out = base(u, v)
        out[(v >= band[0]) & (v < band[1])] = stripe
        for door in doors:
            leaf = (u >= door) & (u < door + 1300) & (v > 450) & (v < 2750)
            out[leaf] = (40, 46, 52)
            out[leaf & (np.abs(u - door - 650) < 50)] = (22, 22, 24)
        return out

    return shade


def bars(colour: Colour, salt: int, pitch_mm: int, bar_mm: int, rails: tuple[int, ...], gap: int = 0) -> Material:
    """Fence: upright bars and level rails; between them one sees through (`gap` = opacity there)."""

    def shade(u: IntArray, v: IntArray) -> IntArray:
        solid = (u % pitch_mm) < bar_mm
        for rail in rails:
            solid |= (v >= rail) & (v < rail + 90)
        change = (hash_grid(u // pitch_mm, v * 0, salt) - 128) >> 4
        opacity = np.where(solid, 256, gap)
        return np.concatenate([_grey(colour, change - 10 * ~solid), opacity[:, None]], axis=1)

    return shade
