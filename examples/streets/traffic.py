"""Moving traffic, and what a drive's theme is sure to show."""

from __future__ import annotations

from collections.abc import Callable

from examples.streets.items import SLANTS, Item, overlap, person, two_wheeler, vehicle
from examples.streets.rng import Rng
from examples.streets.street import LANE_M, Street
from examples.streets.vehicles import LENGTH_M

__all__ = ["theme_items"]

_TRAFFIC = (("car", 60), ("truck", 4), ("bus", 3), ("motorcyclist", 3), ("cyclist", 4), ("none", 31))


def theme_items(street: Street, theme: str, episode: int, start: float, frame: int) -> list[Item]:
    """The drive's theme and its moving traffic: `start` = camera at the episode's first frame, `frame` within it."""
    rng = street.rng.fork("episode", episode)
    extra = _THEME_ITEMS.get(theme)
    if extra is None or (theme.startswith("train") and street.rails is None):
        chosen: list[Item] = []
    else:
        chosen = extra(street, rng.fork("theme"), start, frame)
    others = _traffic(street, rng.fork("traffic"), start, frame)
    return chosen + [item for item in others if not any(overlap(item, other) for other in chosen)]


def _traffic(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    items = []
    lanes = [(k, 1.0) for k in range(0, street.lanes[1] + 1)] + [(-k, -1.0) for k in range(1, street.lanes[0] + 1)]
    for lane, way in lanes:
        s = start + (rng.uniform(13.0, 34.0) if way > 0 else rng.uniform(5.0, 26.0))
        if lane == -1 and street.rails is not None:
            items += _tram_ahead(street, rng.fork("tram"), start, frame)
            continue
        if lane == -1 and street.theme.endswith("near"):
            continue
        while s < start + 50.0:
            spot = rng.fork(lane, int(s * 10))
            kind = spot.weighted(_TRAFFIC)
            kind = kind if spot.chance(street.clutter) else "none"
            speed = way * street.step * spot.uniform(0.5, 1.1)
            at = s + speed * frame
            if kind == "motorcyclist":
                items.append(two_wheeler("motorcycle", lane * LANE_M, at, spot, (0.0, way), ridden=True))
            elif kind == "cyclist":
                items.append(two_wheeler("bicycle", lane * LANE_M + way, at, spot, (0.0, way), ridden=True))
            elif kind != "none":
                items.append(vehicle(street, kind, lane * LANE_M + spot.spread(0.3), at, spot, (0.0, way)))
            s += LENGTH_M.get(kind, 3.0) + spot.uniform(5.0, 22.0)
    return items


def _tram_ahead(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    if not rng.chance(0.75):
        return []
    way = float(rng.choice((-1, 1)))
    s = start + rng.uniform(18.0, 60.0) + way * street.step * 0.6 * frame
    return [vehicle(street, "train", -LANE_M, s, rng, (0.0, way))]


def _near(kind: str, low: float, high: float) -> Callable[[Street, Rng, float, int], list[Item]]:
    def place(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
        lane = -LANE_M if street.rails is None or kind == "train" else -2 * LANE_M
        right = LANE_M if street.lanes[1] else street.road[1] + 1.3
        if kind != "train" and rng.chance(0.5) and (street.lanes[1] or street.strip[1] == "parking"):
            lane = right
        way = 1.0 if lane > 0 or rng.chance(0.5) else -1.0
        s = start + rng.uniform(low, high) + street.step * 0.7 * frame
        return [vehicle(street, kind, lane, s, rng, (0.0, way))]

    return place


def _ahead(kind: str, low: float, high: float) -> Callable[[Street, Rng, float, int], list[Item]]:
    def place(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
        lane = rng.choice((0.0, -LANE_M)) if kind != "train" else -LANE_M
        s = start + rng.uniform(low, high) + LENGTH_M[kind] / 2.0 + street.step * 0.6 * frame
        return [vehicle(street, kind, lane, s, rng, (0.0, 1.0 if lane == 0.0 else -1.0))]

    return place


def _crossing(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    """Something long passes at right angles close ahead; only its wheels and ends tell it from a house."""
    kind = rng.choice(("bus", "truck", "train", "car"))
    way = float(rng.choice((-1, 1)))
    d = rng.uniform(-4.0, 4.0) + way * 1.5 * frame
    s = start + rng.uniform(9.0, 14.0) + street.step * 0.8 * frame
    return [vehicle(street, kind, d, s, rng, (way, 0.0))]


def _riders(kind: str, *, parked: int, ridden: int) -> Callable[[Street, Rng, float, int], list[Item]]:
    def place(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
        items = []
        for k in range(ridden):
            spot = rng.fork("ridden", k)
            heading = spot.choice(SLANTS)
            d = (
                spot.uniform(-3.5, street.road[1] - 0.5)
                if heading[0]
                else spot.choice((street.road[1] - 0.7, -2.4, 1.3))
            )
            s = start + spot.uniform(5.0, 13.0) + 3.0 * k + street.step * 0.7 * frame
            items.append(two_wheeler(kind, d + heading[0] * frame, s, spot, heading, ridden=True))
        for k in range(parked):
            spot = rng.fork("parked", k)
            side = spot.choice((-1, 1))
            d = street.edge(side) + side * spot.uniform(0.3, 1.6)
            items.append(two_wheeler(kind, d, start + spot.uniform(5.0, 20.0), spot, spot.choice(SLANTS), ridden=False))
        return items

    return place


def _crowd(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    items = []
    for k in range(rng.integer(5, 10)):
        spot = rng.fork(k)
        way = spot.choice((-1, 1))
        items.append(
            person(
                spot.uniform(-5.0, 5.0) + 0.5 * way * frame,
                start + spot.uniform(6.0, 16.0) + street.step * 0.8 * frame,
                spot,
            )
        )
    return items


_THEME_ITEMS: dict[str, Callable[[Street, Rng, float, int], list[Item]]] = {
    "bus near": _near("bus", 4.0, 12.0),
    "truck near": _near("truck", 4.0, 11.0),
    "train near": _near("train", 10.0, 22.0),
    "bus ahead": _ahead("bus", 7.0, 18.0),
    "truck ahead": _ahead("truck", 6.0, 16.0),
    "train ahead": _ahead("train", 8.0, 22.0),
    "crossing": _crossing,
    "riders": _riders("bicycle", parked=3, ridden=3),
    "cyclists": _riders("bicycle", parked=1, ridden=4),
    "motorcycles": _riders("motorcycle", parked=4, ridden=1),
    "motorcyclists": _riders("motorcycle", parked=1, ridden=4),
    "crowd": _crowd,
}
