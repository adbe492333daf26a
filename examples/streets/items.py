"""Things to paint, with a place on the street: vehicles, people, two-wheelers, trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from examples.streets.camera import Point2
from examples.streets.canvas import Canvas
from examples.streets.figures import draw_bicycle, draw_motorcycle, draw_person, draw_two_wheeler
from examples.streets.rng import Rng
from examples.streets.solids import Frame
from examples.streets.street import Street
from examples.streets.vehicles import LENGTH_M, draw_vehicle

__all__ = ["SLANTS", "Draw", "Item", "far_to_near", "overlap", "person", "shadow_of", "thing", "two_wheeler", "vehicle"]


Draw: TypeAlias = Callable[[Canvas, float, float, Rng], None]


@dataclass(frozen=True)
class Item:
    """Something to paint: where it is, how, and half its extent across and along the street in metres."""

    d: float
    s: float
    paint: Callable[[Canvas], None]
    half: tuple[float, float] = (0.0, 0.0)
    casts: bool = False


def far_to_near(items: list[Item], here: Point2) -> list[Item]:
    """Order of painting for a camera at `here` = (lateral position, position along the street).

    By the near end; but what stands between the camera and the flank of something long comes after it.
    """
    near = {id(item): item.s - item.half[1] for item in items}
    for long in (item for item in items if item.half[1] > 2.0):
        for item in items:
            beside = near[id(long)] <= near[id(item)] and item.s < long.s + long.half[1]
            flank = long.d - here[0]
            reach = (item.d - here[0]) * (1.0 if flank > 0 else -1.0)
            if item is not long and beside and reach < abs(flank) - long.half[0]:
                near[id(item)] = near[id(long)] - 0.001
    return sorted(items, key=lambda item: -near[id(item)])


def shadow_of(canvas: Canvas, item: Item, street: Street) -> None:
    """Dark contact patch; longer on the side away from the sun."""
    if not item.casts:
        return
    half_w, half_l = item.half
    throw = 0.9 if street.weather.shadow < 220 else 0.15
    left, right = (throw, 0.1) if street.weather.sun_side > 0 else (0.1, throw)
    canvas.darken(
        [
            (item.d - half_w - left, 0, item.s - half_l),
            (item.d + half_w + right, 0, item.s - half_l),
            (item.d + half_w + right, 0, item.s + half_l),
            (item.d - half_w - left, 0, item.s + half_l),
        ],
        min(street.weather.shadow, 176),
    )


def vehicle(street: Street, kind: str, d: float, s: float, rng: Rng, heading: tuple[float, float] = (0.0, 1.0)) -> Item:
    """A vehicle that drives or stands at lateral position d; `heading` (1, 0) is crossing to the right."""
    weather = street.weather
    side = weather.facing(1 if d > 0 else -1)
    light = (272, side, weather.front) if heading[0] == 0.0 else (272, weather.front, side)

    def paint(canvas: Canvas) -> None:
        draw_vehicle(canvas, kind, Frame(d, s, heading), rng.fork("body"), light, lamps=weather.lamps)

    half = (1.0 if kind == "car" else 1.3, LENGTH_M[kind] / 2.0)
    return Item(d, s, paint, half if heading[0] == 0.0 else half[::-1], casts=True)


def thing(draw: Draw, d: float, s: float, rng: Rng) -> Item:
    """Something that stands still and throws no shadow worth painting."""
    return Item(d, s, lambda canvas: draw(canvas, d, s, rng))


def person(d: float, s: float, rng: Rng) -> Item:
    """Somebody on foot."""
    return Item(d, s, lambda canvas: draw_person(canvas, d, s, rng.fork("body")), (0.3, 0.2), casts=True)


def two_wheeler(kind: str, d: float, s: float, rng: Rng, heading: tuple[float, float], *, ridden: bool) -> Item:
    """A bicycle or motorcycle, with or without its rider."""

    def paint(canvas: Canvas) -> None:
        frame, body = Frame(d, s, heading), rng.fork("body")
        if ridden:
            draw_two_wheeler(canvas, kind, frame, body)
        else:
            (draw_bicycle if kind == "bicycle" else draw_motorcycle)(canvas, frame, body)

    half = (0.35, 0.8)
    return Item(d, s, paint, half if abs(heading[0]) < 0.7 else half[::-1], casts=True)


# Headings (sideways, along the street) of two-wheelers: along, oncoming, slanting, crossing.
SLANTS = ((0.0, 1.0), (0.0, -1.0), (0.6, 0.8), (-0.6, 0.8), (0.8, -0.6), (0.96, 0.28), (-0.96, 0.28))


def overlap(a: Item, b: Item) -> bool:
    """Whether two vehicles stand (almost) in each other."""
    return abs(a.d - b.d) < a.half[0] + b.half[0] and abs(a.s - b.s) < a.half[1] + b.half[1] + 1.0
