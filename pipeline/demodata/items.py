"""Things to paint, with a place on the street: vehicles, people, two-wheelers, trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.demodata.canvas import Canvas
from pipeline.demodata.figures import draw_bicycle, draw_motorcycle, draw_person, draw_two_wheeler
from pipeline.demodata.rng import Rng
from pipeline.demodata.solids import Frame
from pipeline.demodata.street import Street
from pipeline.demodata.vehicles import LENGTH_M, draw_vehicle

__all__ = ["SLANTS", "Draw", "Item", "overlap", "person", "shadow_of", "thing", "two_wheeler", "vehicle"]


Draw: TypeAlias = Callable[[Canvas, float, float, Rng], None]


@dataclass(frozen=True)
class Item:
    """Something to paint: where it is (for the order of painting) and how."""

    d: float
    s: float
    paint: Callable[[Canvas], None]
    shadow: tuple[float, float] | None = None
    turned: bool = False


def shadow_of(canvas: Canvas, item: Item, street: Street) -> None:
    """Dark contact patch under a vehicle; longer on the side away from the sun."""
    if item.shadow is None:
        return
    half_w, half_l = item.shadow if not item.turned else (item.shadow[1], item.shadow[0])
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

    return Item(d, s, paint, shadow=(1.0 if kind == "car" else 1.3, LENGTH_M[kind] / 2.0), turned=heading[0] != 0.0)


def thing(draw: Draw, d: float, s: float, rng: Rng) -> Item:
    """Something that stands still and throws no shadow worth painting."""
    return Item(d, s, lambda canvas: draw(canvas, d, s, rng))


def person(d: float, s: float, rng: Rng) -> Item:
    """Somebody on foot."""
    return Item(d, s, lambda canvas: draw_person(canvas, d, s, rng.fork("body")), shadow=(0.3, 0.2))


def two_wheeler(kind: str, d: float, s: float, rng: Rng, heading: tuple[float, float], *, ridden: bool) -> Item:
    """A bicycle or motorcycle, with or without its rider."""

    def paint(canvas: Canvas) -> None:
        frame, body = Frame(d, s, heading), rng.fork("body")
        if ridden:
            draw_two_wheeler(canvas, kind, frame, body)
        else:
            (draw_bicycle if kind == "bicycle" else draw_motorcycle)(canvas, frame, body)

    return Item(d, s, paint, shadow=(0.35, 0.8), turned=abs(heading[0]) > 0.7)


# Headings (sideways, along the street) of two-wheelers: along, oncoming, slanting, crossing.
SLANTS = ((0.0, 1.0), (0.0, -1.0), (0.6, 0.8), (-0.6, 0.8), (0.8, -0.6), (0.96, 0.28), (-0.96, 0.28))


def overlap(a: Item, b: Item) -> bool:
    """Whether two vehicles stand (almost) in each other."""
    reach = []
    for item in (a, b):
        wide, long = item.shadow or (0.0, 0.0)
        reach.append((long, wide) if item.turned else (wide, long))
    return abs(a.d - b.d) < reach[0][0] + reach[1][0] and abs(a.s - b.s) < reach[0][1] + reach[1][1] + 1.0
