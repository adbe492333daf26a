"""The ground of a street: carriageway, sidewalks with kerbs, side streets, tracks, markings, shadows."""

from __future__ import annotations

from examples.streets.camera import Point3
from examples.streets.canvas import Canvas, Colour, Material
from examples.streets.palette import GREENS, vary
from examples.streets.street import VIEW_M, Lot, Street, crossings
from examples.streets.textures import asphalt, foliage, mix, slabs

__all__ = ["draw_ground", "draw_lot_shadow"]

_FAR_M = 120.0


def _stops(low: float, high: float, here: float) -> list[float]:
    """Cut a stretch finely enough, the nearer the finer, that a bend looks round."""
    out = [low]
    while out[-1] < high:
        ahead = max(out[-1] - here, 0.0)
        out.append(min(out[-1] + 2.0 + ahead * 0.25, high))
    return out


def _strip(canvas: Canvas, d0: float, d1: float, s0: float, s1: float, material: Material | Colour) -> None:
    low = max(s0, canvas.camera.z - 12.0)
    if s1 <= low:
        return
    stops = _stops(low, s1, canvas.camera.z)
    outline: list[Point3] = [(d0, 0.0, s) for s in stops] + [(d1, 0.0, s) for s in reversed(stops)]
    # The texture lies along the street, so it does not swim when the camera moves.
    anchor = float(int(canvas.camera.z // 40) * 40)
    shift = -canvas.camera.bend * (anchor - canvas.camera.z) * (anchor - canvas.camera.z)
    basis: tuple[Point3, Point3, Point3] = (
        (shift, 0.0, anchor),
        (shift + 1.0, 0.0, anchor),
        (shift, 0.0, anchor + 1.0),
    )
    canvas.plane(outline, material, basis=basis)


def draw_ground(canvas: Canvas, street: Street) -> None:
    """Paint all that is flat between the lots."""
    here = canvas.camera.z
    low, high = here - 12.0, here + _FAR_M
    cuts = crossings(street, low, high)
    with canvas.label("terrain"):
        _strip(canvas, -160.0, 160.0, low, high, foliage(vary(street.rng.fork("land"), GREENS[0], 16), 3, 120))
    for side in (-1, 1):
        _side(canvas, street, side, low, high)
    road = asphalt(street.asphalt, 11)
    with canvas.label("road"):
        _strip(canvas, street.road[0], street.road[1], low, high, road)
    for start, end in cuts:
        with canvas.label("road"):
            _strip(canvas, -70.0, street.road[0] + 0.1, start, end, road)
        with canvas.label("road"):
            _strip(canvas, street.road[1] - 0.1, 70.0, start, end, road)
    if street.rails is not None:
        _rails(canvas, street, low, high)
    _markings(canvas, street, cuts, low)


def _side(canvas: Canvas, street: Street, side: int, low: float, high: float) -> None:
    index = 0 if side < 0 else 1
    edge = street.edge(side)
    strip = street.strip[index]
    kerb = mix(street.paving, (206, 204, 198), 140)
    at = edge
    if strip == "parking":
        with canvas.label("parking" if street.rng.fork("bays", side).chance(0.25) else "road"):
            _strip(canvas, at, at + side * 2.2, low, high, asphalt(mix(street.asphalt, (128, 120, 116), 60), 5))
        at += side * 2.2
    front = street.front(side)
    with canvas.label("sidewalk"):
        _strip(canvas, at, front, low, high, _sidewalk_material(street, 23 + side))
    if strip == "grass":
        with canvas.label("terrain"):
            _strip(
                canvas,
                at + side * 0.2,
                at + side * 2.2,
                low,
                high,
                foliage(vary(street.rng.fork("verge", side), GREENS[1], 14), 9, 60),
            )
    with canvas.label("curb"):
        _strip(canvas, at, at + side * 0.25, low, high, kerb)


def _sidewalk_material(street: Street, salt: int) -> Material:
    """Paving of the sidewalks: slabs, or the very asphalt of the road."""
    if street.paved == "asphalt":
        return asphalt(street.paving, salt)
    return slabs(street.paving, salt, 1100 if street.paved == "slabs" else 640)


def _rails(canvas: Canvas, street: Street, low: float, high: float) -> None:
    centre = street.rails or 0.0
    own_bed = street.rng.fork("bed").chance(0.4)
    if own_bed:
        with canvas.label("rail track"):
            _strip(canvas, centre - 1.4, centre + 1.4, low, high, foliage((112, 104, 92), 4, 50))
    for offset in (-0.72, 0.72):
        _strip(canvas, centre + offset - 0.06, centre + offset + 0.06, low, high, (66, 64, 64))
        _strip(canvas, centre + offset - 0.02, centre + offset + 0.02, low, high, (150, 150, 150))


def _markings(canvas: Canvas, street: Street, cuts: list[tuple[float, float]], low: float) -> None:
    white = mix(street.asphalt, (226, 226, 220), street.rng.fork("paint").integer(110, 220))

    def blocked(s: float) -> bool:
        return any(start - 4.0 < s < end + 4.0 for start, end in cuts)

    lines = [(k - 0.5) * 3.2 for k in range(-street.lanes[0] + 1, street.lanes[1] + 1)]
    for d in lines:
        s = float(int(low // 6) * 6)
        with canvas.label("marking"):
            while s < canvas.camera.z + 60.0:
                if not blocked(s):
                    _strip(canvas, d - 0.06, d + 0.06, s, s + 3.0, white)
                s += 6.0
    for start, _end in cuts:
        if start - 3.5 > canvas.camera.z - 5.0 and street.rng.fork("zebra", int(start)).chance(0.65):
            with canvas.label("crosswalk"):
                d = street.road[0] + 0.3
                while d < street.road[1] - 0.5:
                    _strip(canvas, d, d + 0.5, start - 3.6, start - 0.8, white)
                    d += 1.0
            _strip(
                canvas,
                street.road[0] if street.lanes[0] == 0 else -1.5,
                street.road[1] - 0.2,
                start - 4.9,
                start - 4.5,
                white,
            )
    rng = street.rng.fork("manholes")
    for k in range(int(low // 17), int((canvas.camera.z + 40.0) // 17)):
        spot = rng.fork(k)
        d, s = spot.uniform(-1.4, 1.4), k * 17.0 + spot.uniform(0.0, 9.0)
        with canvas.label("manhole"):
            canvas.plane(
                [(d, 0, s), (d + 0.6, 0, s), (d + 0.6, 0, s + 0.6), (d, 0, s + 0.6)],
                mix(street.asphalt, (40, 40, 40), 90),
            )


def draw_lot_shadow(canvas: Canvas, street: Street, lot: Lot) -> None:
    """Shadow of the buildings on the sunny side across the street."""
    weather = street.weather
    if lot.side != weather.sun_side or lot.kind not in ("building", "hall", "house", "wall") or weather.shadow > 220:
        return
    front = street.front(lot.side)
    reach = {"building": 7.5, "hall": 5.0, "house": 2.5, "wall": 1.6}[lot.kind] * lot.rng.fork("sun").uniform(0.7, 1.2)
    far, slant = front - lot.side * reach, reach * 0.4
    if lot.end < canvas.camera.z or lot.start > canvas.camera.z + VIEW_M:
        return
    canvas.darken(
        [(front, 0, lot.start), (front, 0, lot.end), (far, 0, lot.end - slant), (far, 0, lot.start - slant)],
        weather.shadow,
    )
