"""Vehicles: cars, vans, lorries, buses, trams, trailers, caravans."""

from __future__ import annotations

from examples.streets.canvas import Canvas, Colour, IntArray, Material
from examples.streets.palette import BRIGHT, BUSES, LORRIES, MASONRY, TRAMS, VEHICLE, livery, vary
from examples.streets.rng import Rng
from examples.streets.solids import Frame, Profile, box, disc, extrude, plate
from examples.streets.textures import FacadeStyle, banded, facade, mix, panels, plain, ribs

__all__ = ["LENGTH_M", "draw_vehicle"]

Light = tuple[int, int, int]
LENGTH_M = {"car": 4.4, "truck": 9.0, "bus": 12.0, "train": 27.0, "trailer": 4.0, "caravan": 5.5}
_GLASS: Colour = (46, 52, 58)
_TYRE: Colour = (26, 26, 28)
# Front and rear lamps, off and on.
_LAMPS: dict[bool, tuple[Colour, Colour]] = {
    True: ((214, 214, 206), (255, 246, 214)),
    False: ((150, 34, 30), (232, 44, 34)),
}
_SEDAN = Profile(
    ((2.2, 0.32), (2.2, 0.72), (1.25, 0.95), (0.45, 1.43), (-1.05, 1.45), (-1.75, 1.02), (-2.2, 0.95), (-2.2, 0.32)),
    ("front", "hood", "glass", "roof", "glass", "hood", "rear"),
    1.8,
)
_HATCH = Profile(
    ((1.95, 0.32), (1.95, 0.75), (1.1, 1.0), (0.4, 1.5), (-1.5, 1.52), (-1.85, 1.0), (-1.95, 0.32)),
    ("front", "hood", "glass", "roof", "glass", "rear"),
    1.75,
)
_VAN = Profile(
    ((2.4, 0.36), (2.4, 0.95), (1.75, 1.15), (1.05, 1.95), (-2.3, 2.0), (-2.4, 1.1), (-2.4, 0.36)),
    ("front", "hood", "glass", "roof", "glass", "rear"),
    1.95,
)
_WINDOWS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "sedan": (
        ((1.05, 0.97), (0.42, 1.34), (-0.25, 1.36), (-0.25, 0.97)),
        ((-0.35, 0.97), (-0.35, 1.36), (-0.98, 1.35), (-1.5, 1.0)),
    ),
    "hatch": (
        ((0.95, 1.0), (0.38, 1.4), (-0.3, 1.42), (-0.3, 1.0)),
        ((-0.4, 1.0), (-0.4, 1.42), (-1.35, 1.42), (-1.6, 1.02)),
    ),
    "van": (
        ((1.65, 1.2), (1.05, 1.82), (0.2, 1.84), (0.2, 1.2)),
        ((0.05, 1.2), (0.05, 1.84), (-2.1, 1.84), (-2.1, 1.2)),
    ),
}


def draw_vehicle(canvas: Canvas, kind: str, frame: Frame, rng: Rng, light: Light, *, lamps: bool = False) -> None:
    """Paint one vehicle and annotate it as `kind`."""
    painters = {"car": _car, "truck": _truck, "bus": _bus, "train": _tram, "trailer": _trailer, "caravan": _caravan}
    with canvas.label(kind):
        painters[kind](canvas, frame, rng, light, lamps)


def _wheels(canvas: Canvas, frame: Frame, side: float, lengths: tuple[float, ...], radius: float) -> None:
    for length in lengths:
        disc(canvas, frame, (length, side * 1.005, radius), radius, _TYRE)
        disc(canvas, frame, (length, side * 1.01, radius), radius * 0.55, (120, 122, 124), light=200)


def _ends(canvas: Canvas, frame: Frame, length: float, width: float, height: float, lamps: bool) -> None:
    """Lamps and number plate of whichever end is seen."""
    front = frame.sees(canvas, (1.0, 0.0), length / 2.0, 0.0)
    rear = frame.sees(canvas, (-1.0, 0.0), -length / 2.0, 0.0)
    if not front and not rear:
        return
    at = length / 2.0 + 0.02 if front else -length / 2.0 - 0.02
    colour = _LAMPS[front][lamps]
    for sign in (-1.0, 1.0):
        inner, outer = sign * width * 0.28, sign * width * 0.46
        plate(canvas, frame, at, (inner, outer), (height, height + 0.16), colour)
    with canvas.label("license plate"):
        plate(canvas, frame, at, (-0.26, 0.26), (height - 0.2, height - 0.08), (216, 214, 204))


def _car(canvas: Canvas, frame: Frame, rng: Rng, light: Light, lamps: bool) -> None:
    shape = rng.weighted((("sedan", 4), ("hatch", 4), ("van", 2)))
    profile = {"sedan": _SEDAN, "hatch": _HATCH, "van": _VAN}[shape]
    body = vary(rng, rng.choice(BRIGHT if rng.chance(0.12) else VEHICLE), 12)
    paint: dict[str, Material | Colour] = {
        "body": body,
        "glass": mix(_GLASS, (140, 150, 160), rng.integer(0, 110)),
        "hood": mix(body, (255, 255, 255), 24),
        "side": plain(body, rng.integer(0, 99), 4),
        "rear": mix(body, (0, 0, 0), 40),
        "front": mix(body, (0, 0, 0), 50),
    }
    side = extrude(canvas, frame, profile, paint, light)
    for window in _WINDOWS[shape]:
        canvas.plane([frame.at(x, side * 1.003, h) for x, h in window], _GLASS, light=light[1])
    length = profile.points[0][0] * 2.0
    _ends(canvas, frame, length, profile.width, 0.66, lamps)
    _wheels(canvas, frame, side, (length * 0.31, -length * 0.3), 0.31)


def _box_skin(rng: Rng, salt: int) -> Material:
    """Side of a lorry body; the same materials as walls, and every second one has their colours too."""
    colour = vary(rng, livery(rng, LORRIES, MASONRY), 12)
    stripe = vary(rng, rng.choice(BRIGHT + MASONRY), 10)
    low = rng.integer(1200, 2200)
    return rng.choice(
        (
            ribs(panels(colour, stripe, salt, 1600, (low, low + rng.integer(200, 1200))), rng.integer(560, 900)),
            ribs(plain(colour, salt, 9), rng.integer(560, 900)),
        )
    )


def _truck(canvas: Canvas, frame: Frame, rng: Rng, light: Light, lamps: bool) -> None:
    cab_colour = vary(rng, rng.choice(VEHICLE + BRIGHT), 10)
    length, height, width = rng.uniform(5.5, 8.0), rng.uniform(2.1, 2.8), 2.45
    skin = _box_skin(rng, rng.integer(0, 99))
    cab = Profile(
        ((1.0, 0.5), (1.05, 1.5), (0.75, 2.6), (-0.9, 2.75), (-0.9, 0.5)), ("front", "glass", "roof", "rear"), 2.35
    )
    cab_frame = Frame(*_shift(frame, length / 2.0 + 1.0), frame.heading, frame.base)
    cab_paint: dict[str, Material | Colour] = {"body": cab_colour, "glass": _GLASS, "rear": (40, 40, 42)}
    load_paint: dict[str, Material | Colour] = {"body": skin, "roof": (120, 120, 120)}

    def draw_cab() -> None:
        side = extrude(canvas, cab_frame, cab, cab_paint, light)
        canvas.plane(
            [cab_frame.at(x, side * 1.004, h) for x, h in ((0.8, 1.5), (0.6, 2.3), (-0.3, 2.35), (-0.3, 1.5))],
            _GLASS,
            light=light[1],
        )
        _ends(canvas, cab_frame, 2.05, 2.3, 0.75, lamps)

    def draw_load() -> None:
        box(canvas, frame, (length, 2.1, 0.5), {"body": (38, 38, 40)}, light, 0.55)
        box(canvas, frame, (length, width, height), load_paint, light, 1.0)
        if frame.sees(canvas, (-1.0, 0.0), -length / 2.0, 0.0):
            _ends(canvas, frame, length, 2.3, 0.8, lamps)

    # Whichever part is farther goes first.
    ahead = canvas.camera.to_view(cab_frame.at(0.0, 0.0, 0.0))[2] > canvas.camera.to_view(frame.at(0.0, 0.0, 0.0))[2]
    for part in (draw_cab, draw_load) if ahead else (draw_load, draw_cab):
        part()
    side = 1.1 if frame.sees(canvas, (0.0, 1.0), 0.0, 1.2) else -1.1
    _wheels(canvas, frame, side, (length / 2.0 + 0.9, -length * 0.22, -length * 0.38), 0.48)


def _shift(frame: Frame, length: float) -> tuple[float, float]:
    x, _, z = frame.at(length, 0.0, 0.0)
    return x, z


def _windows(wall: Colour, salt: int, sill: int, height: int, bay: int) -> Material:
    """One row of windows: the very material of a house front, at a vehicle's height."""
    style = FacadeStyle(
        wall=wall,
        frame=mix(wall, (20, 20, 20), 150),
        glass=(58, 66, 74),
        bay=bay,
        floor=20_000,
        sill=sill,
        window=(bay - 140, height),
    )
    return facade(style, salt)


def _coach(
    canvas: Canvas,
    frame: Frame,
    rng: Rng,
    light: Light,
    size: tuple[float, float, float],
    lift: float,
    doors: tuple[int, ...] = (),
) -> float:
    """Body of a bus or tram car: windows all along, a face at both ends."""
    length, width, height = size
    wall = vary(rng, livery(rng, BUSES if doors else TRAMS, MASONRY), 12)
    salt = rng.integer(0, 99)
    sill = int((lift + height * 0.42) * 1000)
    stripe = vary(rng, rng.choice(BRIGHT + MASONRY), 10)
    band = (sill - 480, sill - 230) if not doors else (0, int((lift + 0.25) * 1000))
    side = banded(_windows(wall, salt, sill, int(height * 400), rng.integer(1100, 1700)), stripe, band, doors)
    end = mix(wall, (0, 0, 0), 30)

    def face(u: IntArray, v: IntArray) -> IntArray:
        out = plain(end, salt, 4)(u, v)
        glass = (u > 160) & (u < int(width * 1000) - 160) & (v > int(height * 420)) & (v < int(height * 820))
        out[glass] = (44, 50, 58)
        out[(v > int(height * 870)) & (u > 400) & (u < int(width * 1000) - 400)] = (34, 34, 36)
        return out

    paint: dict[str, Material | Colour] = {
        "body": wall,
        "side": side,
        "front": face,
        "rear": face,
        "roof": mix(wall, (60, 60, 60), 120),
    }
    half = length / 2.0
    top = lift + height
    profile = Profile(((half, lift), (half, top), (-half, top), (-half, lift)), ("front", "roof", "rear"), width)
    # The rear strip is walked from the roof down: turn its texture over.
    return extrude(canvas, frame, profile, {**paint, "rear": _flip(face, height)}, light)


def _flip(material: Material, height: float) -> Material:
    def shade(u: IntArray, v: IntArray) -> IntArray:
        return material(u, int(height * 1000) - v)

    return shade


def _bus(canvas: Canvas, frame: Frame, rng: Rng, light: Light, lamps: bool) -> None:
    side = _coach(canvas, frame, rng, light, (12.0, 2.5, 2.75), 0.35, doors=(600, 5600, 9900))
    _ends(canvas, frame, 12.0, 2.5, 0.7, lamps)
    _wheels(canvas, frame, side, (3.6, -3.2), 0.5)


def _tram(canvas: Canvas, frame: Frame, rng: Rng, light: Light, lamps: bool) -> None:
    parts = (-9.0, 0.0, 9.0)
    tone = rng.fork("tram")
    depth = [(canvas.camera.to_view(frame.at(part, 0.0, 0.0))[2], part) for part in parts]
    for _, part in sorted(depth, reverse=True):
        car = Frame(*_shift(frame, part), frame.heading, frame.base)
        box(canvas, car, (8.2, 2.2, 0.4), {"body": (30, 30, 32)}, light, 0.02)
        _coach(canvas, car, tone.fork("same"), light, (8.7, 2.4, 3.0), 0.35)
        box(canvas, car, (7.0, 1.9, 0.35), {"body": (70, 72, 74)}, light, 3.3)
    _ends(canvas, frame, 26.7, 2.4, 0.8, lamps)
    top = Frame(frame.x, frame.z, frame.heading, frame.base)
    for a, b in (((0.4, 3.6), (-0.5, 4.3)), ((-0.5, 4.3), (0.3, 5.0))):
        canvas.plane(
            [top.at(a[0], -0.06, a[1]), top.at(b[0], -0.06, b[1]), top.at(b[0], 0.06, b[1]), top.at(a[0], 0.06, a[1])],
            (52, 54, 56),
        )


def _trailer(canvas: Canvas, frame: Frame, rng: Rng, light: Light, _lamps: bool) -> None:
    side = box(canvas, frame, (3.4, 1.7, 1.1), {"body": vary(rng, rng.choice(VEHICLE), 10)}, light, 0.5)
    _wheels(canvas, frame, side, (0.0,), 0.3)


def _caravan(canvas: Canvas, frame: Frame, rng: Rng, light: Light, _lamps: bool) -> None:
    wall = vary(rng, (206, 202, 192), 8)
    side = box(canvas, frame, (5.0, 2.2, 2.1), {"body": wall, "side": _windows(wall, 3, 1300, 600, 1700)}, light, 0.45)
    _wheels(canvas, frame, side, (-0.3,), 0.3)
