"""Shared colours. Classes draw from the same lists on purpose: a colour alone must not give a class away."""

from __future__ import annotations

from pipeline.demodata.canvas import Colour
from pipeline.demodata.rng import Rng

__all__ = ["ASPHALT", "BRIGHT", "CLOTHES", "GREENS", "MASONRY", "METAL", "VEHICLE", "vary"]

# Walls of houses, garden walls, fences, lorry bodies, buses and trams.
MASONRY: tuple[Colour, ...] = (
    (168, 156, 138),
    (184, 172, 150),
    (150, 128, 108),
    (142, 104, 86),
    (176, 164, 158),
    (128, 122, 116),
    (196, 188, 176),
    (158, 146, 120),
    (120, 96, 84),
    (140, 138, 140),
    (104, 100, 98),
    (178, 148, 112),
)
# Bodies of cars; also doors, containers, bins and dark clothes.
VEHICLE: tuple[Colour, ...] = (
    (38, 40, 44),
    (60, 62, 66),
    (96, 98, 102),
    (142, 144, 146),
    (184, 186, 188),
    (206, 206, 204),
    (44, 56, 84),
    (96, 40, 40),
    (52, 70, 62),
    (120, 110, 94),
    (70, 84, 104),
    (150, 60, 48),
)
CLOTHES: tuple[Colour, ...] = (
    (40, 42, 48),
    (56, 60, 76),
    (84, 78, 74),
    (120, 112, 104),
    (60, 44, 42),
    (150, 146, 142),
    (98, 48, 46),
    (52, 66, 96),
    (142, 128, 96),
    (70, 80, 62),
    (178, 172, 164),
    (120, 70, 60),
)
BRIGHT: tuple[Colour, ...] = (
    (176, 48, 40),
    (196, 152, 40),
    (48, 92, 150),
    (64, 122, 76),
    (196, 104, 44),
    (122, 60, 112),
)
GREENS: tuple[Colour, ...] = ((66, 84, 42), (78, 92, 50), (56, 76, 44), (92, 98, 54), (74, 82, 56), (104, 100, 62))
ASPHALT: tuple[Colour, ...] = ((104, 102, 104), (92, 92, 94), (118, 114, 112), (110, 108, 100), (84, 84, 88))
METAL: tuple[Colour, ...] = ((152, 156, 158), (174, 176, 172), (60, 64, 64), (190, 190, 184), (46, 52, 50))


def vary(rng: Rng, colour: Colour, amount: int) -> Colour:
    """A neighbour of a colour: common change of brightness and a small change of hue."""
    shift = rng.integer(-amount, amount)
    red, green, blue = (min(max(value + shift + rng.integer(-amount // 4, amount // 4), 12), 238) for value in colour)
    return red, green, blue
