"""Colours. Each kind of thing has liveries of its own, but every second thing wears what anything may wear.

A colour is a hint and never the answer: every livery is worn by at least two classes (brick walls and red buses,
white lorries and light cars, green trams and green fences), and glass, rubber and shade belong to nobody.
"""

from __future__ import annotations

from examples.streets.canvas import Colour
from examples.streets.rng import Rng

__all__ = [
    "ASPHALT",
    "BRIGHT",
    "BUSES",
    "CLOTHES",
    "FACADES",
    "FENCES",
    "GREENS",
    "LORRIES",
    "MASONRY",
    "METAL",
    "MOTORCYCLES",
    "RIDERS",
    "TRAMS",
    "VEHICLE",
    "WALLS",
    "livery",
    "vary",
]

# What anything that is built may wear: houses, garden walls, fences, lorry bodies, buses and trams.
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

FACADES: tuple[Colour, ...] = ((202, 184, 146), (212, 196, 166), (190, 164, 124), (182, 150, 116), (216, 206, 186))
WALLS: tuple[Colour, ...] = ((150, 82, 64), (134, 74, 62), (164, 98, 78), (142, 92, 82))
FENCES: tuple[Colour, ...] = ((52, 84, 62), (98, 70, 46), (114, 84, 56), (44, 66, 54))
LORRIES: tuple[Colour, ...] = ((214, 216, 218), (66, 100, 152), (198, 202, 208), (54, 84, 138))
BUSES: tuple[Colour, ...] = ((184, 50, 42), (208, 160, 48), (172, 44, 48))
TRAMS: tuple[Colour, ...] = ((42, 118, 110), (58, 132, 116), (40, 104, 82))
MOTORCYCLES: tuple[Colour, ...] = ((122, 56, 116), (198, 100, 40), (150, 44, 40))
RIDERS: tuple[Colour, ...] = ((206, 206, 62), (210, 134, 44), (178, 204, 70))
_OWN = 0.5  # share of things that wear their own livery


def livery(rng: Rng, own: tuple[Colour, ...], common: tuple[Colour, ...]) -> Colour:
    """A colour of the kind's own list, or for every second thing of the list that everything shares."""
    return rng.choice(own if rng.chance(_OWN) else common)


def vary(rng: Rng, colour: Colour, amount: int) -> Colour:
    """A neighbour of a colour: common change of brightness and a small change of hue."""
    shift = rng.integer(-amount, amount)
    red, green, blue = (min(max(value + shift + rng.integer(-amount // 4, amount // 4), 12), 238) for value in colour)
    return red, green, blue
