"""Who is on the street: placed vehicles, people, poles and signs, near enough to matter, as things to paint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.demodata.canvas import Canvas
from pipeline.demodata.figures import draw_bicycle, draw_motorcycle, draw_person, draw_stroller, draw_two_wheeler
from pipeline.demodata.furniture import draw_bin, draw_bollards, draw_lamp, draw_mast, draw_poster, draw_sign, draw_traffic_light
from pipeline.demodata.nature import draw_tree
from pipeline.demodata.rng import Rng
from pipeline.demodata.solids import Frame
from pipeline.demodata.street import LANE_M, VIEW_M, Street, crossings
from pipeline.demodata.vehicles import LENGTH_M, draw_vehicle

__all__ = ["Item", "ambient_items", "shadow_of", "theme_items"]

_CHUNK_M = 20.0


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
    canvas.darken([(item.d - half_w - left, 0, item.s - half_l), (item.d + half_w + right, 0, item.s - half_l),
                   (item.d + half_w + right, 0, item.s + half_l), (item.d - half_w - left, 0, item.s + half_l)],
                  min(street.weather.shadow, 176))


def _vehicle(street: Street, kind: str, d: float, s: float, rng: Rng, heading: tuple[float, float] = (0.0, 1.0)) -> Item:
    weather = street.weather
    side = weather.facing(1 if d > 0 else -1)
    light = (272, side, weather.front) if heading[0] == 0.0 else (272, weather.front, side)

    def paint(canvas: Canvas) -> None:
        draw_vehicle(canvas, kind, Frame(d, s, heading), rng.fork("body"), light, lamps=weather.lamps)

    return Item(d, s, paint, shadow=(1.0 if kind == "car" else 1.3, LENGTH_M[kind] / 2.0), turned=heading[0] != 0.0)


def _person(d: float, s: float, rng: Rng) -> Item:
    return Item(d, s, lambda canvas: draw_person(canvas, d, s, rng.fork("body")), shadow=(0.3, 0.2))


def _two_wheeler(kind: str, d: float, s: float, rng: Rng, heading: tuple[float, float], *, ridden: bool) -> Item:
    def paint(canvas: Canvas) -> None:
        frame, body = Frame(d, s, heading), rng.fork("body")
        if ridden:
            draw_two_wheeler(canvas, kind, frame, body)
        else:
            (draw_bicycle if kind == "bicycle" else draw_motorcycle)(canvas, frame, body)

    return Item(d, s, paint, shadow=(0.35, 0.8), turned=heading[0] > 0.7)


def _tree(d: float, s: float, rng: Rng) -> Item:
    return Item(d, s, lambda canvas: draw_tree(canvas, d, s, rng))


_SLANTS = ((0.0, 1.0), (0.0, -1.0), (0.6, 0.8), (-0.6, 0.8), (0.8, -0.6), (0.96, 0.28), (-0.96, 0.28))


def ambient_items(street: Street, here: float) -> list[Item]:
    """What any street has: keyed by stretches of 20 m, so it stays put while the camera moves."""
    items: list[Item] = []
    cuts = crossings(street, here - 20.0, here + VIEW_M)
    first = int((here - 4.0) // _CHUNK_M)
    for index in range(first, first + int(VIEW_M / _CHUNK_M)):
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
    busy = {"centre": 1.0, "suburb": 0.55, "works": 0.35, "edge": 0.2}[street.district]
    if strip == "parking":
        items += _parked(street, rng.fork("parked"), side, edge + side * 1.1, s0, cuts)
    for k in range(2):
        spot = rng.fork("tree", k)
        if spot.chance(0.7 if strip == "grass" else 0.22):
            items.append(_tree(kerb + side * 1.2, s0 + 10.0 * k + spot.uniform(0.0, 9.0), spot))
    items += _kerbside(street, rng.fork("kerbside"), side, kerb, s0, cuts)
    for k in range(rng.weighted(((0, 4), (1, 3), (2, 2), (3, 1)))):
        spot = rng.fork("walker", k)
        if spot.chance(busy):
            items.append(_person(spot.uniform(min(kerb, walk_to) + 0.4, max(kerb, walk_to) - 0.4), s0 + spot.uniform(0.0, 20.0), spot))
    if rng.chance(0.18 * busy):
        spot, s = rng.fork("bike"), s0 + rng.uniform(0.0, 20.0)
        items.append(_two_wheeler("bicycle", walk_to - side * 0.6, s, spot, spot.choice(_SLANTS), ridden=False))
    return items


def _parked(street: Street, rng: Rng, side: int, d: float, s0: float, cuts: list[tuple[float, float]]) -> list[Item]:
    items = []
    s = s0 + 2.6
    while s < s0 + _CHUNK_M - 2.0:
        spot = rng.fork(int(s * 10))
        kind = spot.weighted((("car", 40), ("truck", 1), ("trailer", 1), ("motorcycle", 2)))
        if spot.chance(0.72) and _free(s, cuts, 3.5):
            if kind == "motorcycle":
                items.append(_two_wheeler(kind, d, s, spot, spot.choice(_SLANTS), ridden=False))
            elif kind != "truck" or s < s0 + 10.0:
                items.append(_vehicle(street, kind, d + spot.spread(0.2), s, spot, (0.0, 1.0 if side > 0 else -1.0)))
                s += 4.5 if kind == "truck" else 0.0
        s += 5.4
    return items


def _kerbside(street: Street, rng: Rng, side: int, kerb: float, s0: float, cuts: list[tuple[float, float]]) -> list[Item]:
    items: list[Item] = []
    at = kerb + side * 0.55
    wants = (("lamp", 0.42), ("mast", 0.22), ("sign", 0.42), ("bin", 0.14), ("poster", 0.05), ("bollards", 0.12), ("stroller", 0.03))
    for name, probability in wants:
        spot = rng.fork(name)
        s = s0 + spot.uniform(0.0, _CHUNK_M)
        if not spot.chance(probability) or not _free(s, cuts, 0.0):
            continue
        painters: dict[str, Callable[[Canvas, float, float, Rng], None]] = {
            "mast": draw_mast, "sign": draw_sign, "bin": draw_bin, "poster": draw_poster, "bollards": draw_bollards, "stroller": draw_stroller,
        }
        items.append(_thing(street, name, painters, at + side * (1.0 if name in ("poster", "stroller") else 0.0), s, side, spot))
    return items


def _thing(street: Street, name: str, painters: dict[str, Callable[[Canvas, float, float, Rng], None]], d: float, s: float, side: int, rng: Rng) -> Item:
    def paint(canvas: Canvas) -> None:
        if name == "lamp":
            draw_lamp(canvas, d, s, -side * 1.6, rng, lit=street.weather.lamps)
        else:
            painters[name](canvas, d, s, rng)

    return Item(d, s, paint)


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
            items.append(Item(d, s, lambda canvas, d=d, s=s, reach=reach, spot=spot: draw_traffic_light(canvas, d, s, reach, spot)))  # type: ignore[misc]  # bound by default
        elif spot.chance(0.7):
            items.append(Item(d, s, lambda canvas, d=d, s=s, spot=spot: draw_sign(canvas, d, s, spot)))  # type: ignore[misc]  # bound by default
        for k in range(spot.weighted(((0, 3), (1, 2), (2, 1)))):
            person = spot.fork("waiting", k)
            items.append(_person(d + side * person.uniform(0.2, 1.6), s - person.uniform(0.0, 2.5), person))
    return items


def theme_items(street: Street, episode: int, start: float, frame: int) -> list[Item]:
    """The drive's theme and its moving traffic: `start` = camera at the episode's first frame, `frame` within it."""
    rng = street.rng.fork("episode", episode)
    extra = _THEME_ITEMS.get(street.theme)
    chosen = extra(street, rng.fork("theme"), start, frame) if extra is not None else []
    others = _traffic(street, rng.fork("traffic"), start, frame)
    return chosen + [item for item in others if not any(_overlap(item, other) for other in chosen)]


def _overlap(a: Item, b: Item) -> bool:
    """Whether two vehicles stand (almost) in each other."""
    reach = []
    for item in (a, b):
        wide, long = item.shadow or (0.0, 0.0)
        reach.append((long, wide) if item.turned else (wide, long))
    return abs(a.d - b.d) < reach[0][0] + reach[1][0] and abs(a.s - b.s) < reach[0][1] + reach[1][1] + 1.0


def _traffic(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    items = []
    lanes = [(k, 1.0) for k in range(0, street.lanes[1] + 1)] + [(-k, -1.0) for k in range(1, street.lanes[0] + 1)]
    for lane, way in lanes:
        s = start + (rng.uniform(13.0, 34.0) if way > 0 else rng.uniform(5.0, 26.0))
        if street.theme.endswith("near") and lane == -1:
            continue
        while s < start + 95.0:
            spot = rng.fork(lane, int(s * 10))
            kind = spot.weighted((("car", 60), ("truck", 4), ("bus", 3), ("motorcyclist", 3), ("none", 40)))
            speed = way * street.step * spot.uniform(0.5, 1.1)
            at = s + speed * frame
            if kind == "motorcyclist":
                items.append(_two_wheeler("motorcycle", lane * LANE_M, at, spot, (0.0, way), ridden=True))
            elif kind != "none":
                items.append(_vehicle(street, kind, lane * LANE_M + spot.spread(0.3), at, spot, (0.0, way)))
            s += LENGTH_M.get(kind, 3.0) + spot.uniform(5.0, 22.0)
    return items


def _near(kind: str, low: float, high: float) -> Callable[[Street, Rng, float, int], list[Item]]:
    def place(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
        lane = -LANE_M if street.rails is None or kind == "train" else -2 * LANE_M
        if kind != "train" and rng.chance(0.4):
            lane = street.road[1] + (1.2 if street.strip[1] == "parking" else -0.2)
        way = 1.0 if lane > 0 or rng.chance(0.5) else -1.0
        s = start + rng.uniform(low, high) + street.step * 0.7 * frame
        return [_vehicle(street, kind, lane, s, rng, (0.0, way))]

    return place


def _ahead(kind: str, low: float, high: float) -> Callable[[Street, Rng, float, int], list[Item]]:
    def place(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
        lane = rng.choice((0.0, -LANE_M)) if kind != "train" else -LANE_M
        s = start + rng.uniform(low, high) + LENGTH_M[kind] / 2.0 + street.step * 0.6 * frame
        return [_vehicle(street, kind, lane, s, rng, (0.0, 1.0 if lane == 0.0 else -1.0))]

    return place


def _crossing(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    """Something long passes at right angles close ahead; only its wheels and ends tell it from a house."""
    kind = rng.choice(("bus", "truck", "train", "car"))
    way = float(rng.choice((-1, 1)))
    d = rng.uniform(-4.0, 4.0) + way * 1.5 * frame
    s = start + rng.uniform(9.0, 14.0) + street.step * 0.8 * frame
    return [_vehicle(street, kind, d, s, rng, (way, 0.0))]


def _riders(kind: str, *, parked: int, ridden: int) -> Callable[[Street, Rng, float, int], list[Item]]:
    def place(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
        items = []
        for k in range(ridden):
            spot = rng.fork("ridden", k)
            heading = spot.choice(_SLANTS)
            d = spot.uniform(-3.5, street.road[1] - 0.5) if heading[0] else spot.choice((street.road[1] - 0.7, -2.4, 1.3))
            s = start + spot.uniform(5.0, 13.0) + 3.0 * k + street.step * 0.7 * frame
            items.append(_two_wheeler(kind, d + heading[0] * frame, s, spot, heading, ridden=True))
        for k in range(parked):
            spot = rng.fork("parked", k)
            side = spot.choice((-1, 1))
            d = street.edge(side) + side * spot.uniform(0.3, 1.6)
            items.append(_two_wheeler(kind, d, start + spot.uniform(5.0, 20.0), spot, spot.choice(_SLANTS), ridden=False))
        return items

    return place


def _crowd(street: Street, rng: Rng, start: float, frame: int) -> list[Item]:
    items = []
    for k in range(rng.integer(5, 10)):
        spot = rng.fork(k)
        way = spot.choice((-1, 1))
        items.append(_person(spot.uniform(-5.0, 5.0) + 0.5 * way * frame, start + spot.uniform(6.0, 16.0) + street.step * 0.8 * frame, spot))
    return items


_THEME_ITEMS: dict[str, Callable[[Street, Rng, float, int], list[Item]]] = {
    "bus near": _near("bus", 4.0, 12.0), "truck near": _near("truck", 4.0, 11.0), "train near": _near("train", 10.0, 22.0),
    "bus ahead": _ahead("bus", 7.0, 18.0), "truck ahead": _ahead("truck", 6.0, 16.0), "train ahead": _ahead("train", 8.0, 22.0),
    "crossing": _crossing, "riders": _riders("bicycle", parked=3, ridden=3), "cyclists": _riders("bicycle", parked=1, ridden=4), "motorcycles": _riders("motorcycle", parked=4, ridden=1),
    "motorcyclists": _riders("motorcycle", parked=1, ridden=4), "crowd": _crowd,
}
