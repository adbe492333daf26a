"""What any street has along its kerbs: parked cars, trees, poles, signs, signals, people on the sidewalks."""

from __future__ import annotations

from functools import partial

from examples.streets.figures import draw_stroller
from examples.streets.furniture import (
    draw_bin,
    draw_bollards,
    draw_lamp,
    draw_mast,
    draw_poster,
    draw_sign,
    draw_traffic_light,
)
from examples.streets.items import SLANTS, Draw, Item, person, thing, two_wheeler, vehicle
from examples.streets.nature import draw_tree
from examples.streets.rng import Rng
from examples.streets.street import Street, crossings

__all__ = ["ambient_items"]

_CHUNK_M = 20.0
_FAR_M = 24.0  # at least so far ahead; much farther, a person is a pixel or two wide


def ambient_items(street: Street, here: float) -> list[Item]:
    """What any street has: keyed by stretches of 20 m, so it stays put while the camera moves."""
    items: list[Item] = []
    cuts = crossings(street, here - 20.0, here + _FAR_M)
    first, last = int((here - 2.0) // _CHUNK_M), int((here + _FAR_M) // _CHUNK_M)
    for index in range(first, last + 1):
        for side in (-1, 1):
            items += _chunk(street, street.rng.fork("chunk", index, side), side, index * _CHUNK_M, cuts)
    for start, end in cuts:
        items += _corner(street, start, end)
    return items


def _free(s: float, cuts: list[tuple[float, float]], margin: float) -> bool:
    return not any(start - margin < s < end + margin for start, end in cuts)


def _chunk(street: Street, rng: Rng, side: int, s0: float, cuts: list[tuple[float, float]]) -> list[Item]:
    items: list[Item] = []
    index = 0 if side < 0 else 1
    strip, edge = street.strip[index], street.edge(side)
    kerb = edge + (side * 2.2 if strip == "parking" else 0.0)
    walk_to = street.front(side)
    busy = {"centre": 1.0, "suburb": 0.55, "works": 0.35, "edge": 0.2}[street.district] * street.clutter
    if strip == "parking":
        items += _parked(street, rng.fork("parked"), side, edge + side * 1.1, s0, cuts)
    for k in range(2):
        spot = rng.fork("tree", k)
        if spot.chance((0.6 if strip == "grass" else 0.2) * street.clutter):
            items.append(thing(draw_tree, kerb + side * 1.2, s0 + 10.0 * k + spot.uniform(0.0, 9.0), spot))
    items += _kerbside(street, rng.fork("kerbside"), side, kerb, s0, cuts)
    for k in range(rng.weighted(((0, 4), (1, 3), (2, 2), (3, 1)))):
        spot = rng.fork("walker", k)
        if spot.chance(busy):
            items.append(
                person(
                    spot.uniform(min(kerb, walk_to) + 0.4, max(kerb, walk_to) - 0.4), s0 + spot.uniform(0.0, 20.0), spot
                )
            )
    if rng.chance(0.36 * busy):
        spot, s = rng.fork("bike"), s0 + rng.uniform(0.0, 20.0)
        items.append(two_wheeler("bicycle", walk_to - side * 0.6, s, spot, spot.choice(SLANTS), ridden=False))
    return items


def _parked(street: Street, rng: Rng, side: int, d: float, s0: float, cuts: list[tuple[float, float]]) -> list[Item]:
    items = []
    s = s0 + 2.6
    while s < s0 + _CHUNK_M - 2.0:
        spot = rng.fork(int(s * 10))
        kind = spot.weighted((("car", 40), ("truck", 1), ("trailer", 1), ("motorcycle", 2)))
        if spot.chance(0.72 * street.clutter) and _free(s, cuts, 3.5):
            if kind == "motorcycle":
                items.append(two_wheeler(kind, d, s, spot, spot.choice(SLANTS), ridden=False))
            elif kind != "truck" or s < s0 + 10.0:
                items.append(vehicle(street, kind, d + spot.spread(0.2), s, spot, (0.0, 1.0 if side > 0 else -1.0)))
                s += 4.5 if kind == "truck" else 0.0
        s += 5.4
    return items


# Thing, chance in a stretch of 20 m, metres behind the kerb.
_KERBSIDE: tuple[tuple[Draw, float, float], ...] = (
    (draw_mast, 0.16, 0.55),
    (draw_sign, 0.45, 0.55),
    (draw_bin, 0.14, 0.55),
    (draw_bollards, 0.12, 0.55),
    (draw_poster, 0.05, 1.55),
    (draw_stroller, 0.03, 1.55),
)


def _kerbside(
    street: Street, rng: Rng, side: int, kerb: float, s0: float, cuts: list[tuple[float, float]]
) -> list[Item]:
    items: list[Item] = []
    for draw, probability, behind in _KERBSIDE:
        spot = rng.fork(draw.__name__)
        s = s0 + spot.uniform(0.0, _CHUNK_M)
        if spot.chance(probability * street.clutter) and _free(s, cuts, 0.0):
            items.append(thing(draw, kerb + side * behind, s, spot))
    spot = rng.fork("lamp")
    s = s0 + spot.uniform(0.0, _CHUNK_M)
    if spot.chance(0.36 * street.clutter) and _free(s, cuts, 0.0):
        draw_arm = partial(draw_lamp, reach=-side * 1.6, lit=street.weather.lamps)
        items.append(thing(draw_arm, kerb + side * 0.55, s, spot))
    return items


def _corner(street: Street, start: float, end: float) -> list[Item]:
    """Signals and signs at a crossing, and people waiting there."""
    rng = street.rng.fork("corner", int(start * 10))
    items: list[Item] = []
    signals = street.theme == "signals" or rng.chance(0.6)
    for side, s in ((-1, start - 1.0), (1, start - 1.0), (-1, end + 1.0), (1, end + 1.0)):
        spot = rng.fork(side, int(s * 10))
        d = street.edge(side) + side * 0.7
        reach = -side * spot.uniform(2.0, 3.6) if spot.chance(0.4) else 0.0
        if signals:
            items.append(thing(partial(draw_traffic_light, reach=reach), d, s, spot.fork("signal")))
        elif spot.chance(0.7):
            items.append(thing(draw_sign, d, s, spot.fork("sign")))
        for k in range(spot.weighted(((0, 3), (1, 2), (2, 1)))):
            waiting = spot.fork("waiting", k)
            items.append(person(d + side * waiting.uniform(0.2, 1.6), s - waiting.uniform(0.0, 2.5), waiting))
    return items
