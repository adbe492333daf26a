"""People and two-wheelers."""

from __future__ import annotations

from examples.streets.canvas import Canvas, Colour
from examples.streets.palette import BRIGHT, CLOTHES, MOTORCYCLES, RIDERS, VEHICLE, livery, vary
from examples.streets.rng import Rng
from examples.streets.solids import Frame, disc, facing_frame, stroke
from examples.streets.textures import mix

__all__ = ["draw_bicycle", "draw_motorcycle", "draw_person", "draw_stroller", "draw_two_wheeler"]

_SKIN: tuple[Colour, ...] = ((188, 148, 124), (150, 110, 86), (206, 168, 146), (104, 74, 58))
_HAIR: tuple[Colour, ...] = ((40, 32, 28), (92, 66, 44), (150, 124, 84), (120, 116, 112))


def _clothes(rng: Rng) -> tuple[Colour, Colour]:
    """Coat and trousers, from the same lists for people on foot and on wheels."""
    return vary(rng, rng.choice(BRIGHT if rng.chance(0.35) else CLOTHES), 14), vary(rng, rng.choice(CLOTHES), 12)


def _limb(
    canvas: Canvas, frame: Frame, a: tuple[float, float], b: tuple[float, float], width: float, colour: Colour
) -> None:
    stroke(canvas, frame, (a, b), width, colour)


def draw_person(canvas: Canvas, x: float, z: float, rng: Rng, base: float = 0.0) -> None:
    """A standing or walking person who is seen from wherever the camera is."""
    frame = facing_frame(canvas, x, z, base)
    size = rng.uniform(0.88, 1.08) * (0.72 if rng.chance(0.1) else 1.0)
    coat, trousers = _clothes(rng)
    stride, swing = rng.uniform(0.04, 0.3) * size, rng.uniform(0.02, 0.22) * size
    hip, shoulder = 0.9 * size, 1.45 * size
    with canvas.label("person"):
        _limb(canvas, frame, (-0.06, hip), (-stride, 0.02), 0.17 * size, mix(trousers, (0, 0, 0), 40))
        _limb(canvas, frame, (0.06, hip), (stride, 0.02), 0.17 * size, trousers)
        half = rng.uniform(0.19, 0.25) * size
        skirt = rng.uniform(0.6, 0.9) if rng.chance(0.3) else 0.82
        canvas.plane(
            [
                frame.at(0, -half * 0.85, skirt * size),
                frame.at(0, half * 0.85, skirt * size),
                frame.at(0, half, shoulder),
                frame.at(0, -half, shoulder),
            ],
            coat,
        )
        _limb(
            canvas,
            frame,
            (-half, shoulder - 0.05),
            (-half - swing * 0.5, 0.85 * size),
            0.12 * size,
            mix(coat, (0, 0, 0), 30),
        )
        _limb(canvas, frame, (half, shoulder - 0.05), (half + swing * 0.5, 0.85 * size), 0.12 * size, coat)
        disc(canvas, frame, (0.0, 0.0, 1.6 * size), 0.13 * size, rng.choice(_SKIN), across=True)
        disc(canvas, frame, (0.0, 0.0, 1.67 * size), 0.12 * size, rng.choice(_HAIR), across=True)
        if rng.chance(0.3):
            _limb(
                canvas, frame, (half, 0.95 * size), (half + 0.05, 0.6 * size), 0.26, vary(rng, rng.choice(VEHICLE), 10)
            )


def draw_stroller(canvas: Canvas, x: float, z: float, rng: Rng, base: float = 0.0) -> None:
    """A push-chair: a dynamic thing that nobody trains."""
    frame = facing_frame(canvas, x, z, base)
    with canvas.label("stroller"):
        canvas.plane(
            [frame.at(0, -0.3, 0.4), frame.at(0, 0.35, 0.4), frame.at(0, 0.4, 0.95), frame.at(0, -0.2, 0.8)],
            vary(rng, rng.choice(CLOTHES + BRIGHT), 10),
        )
        for side in (-0.25, 0.3):
            disc(canvas, frame, (0.0, side, 0.15), 0.15, (30, 30, 32), across=True)


def _wheel_pair(canvas: Canvas, frame: Frame, base: float, radius: float, hub: Colour | None) -> None:
    for offset in (-base / 2.0, base / 2.0):
        disc(canvas, frame, (offset, 0.0, radius), radius, (28, 28, 30))
        if hub is not None:
            disc(canvas, frame, (offset, 0.0, radius), radius * 0.72, hub)


def draw_bicycle(canvas: Canvas, frame: Frame, rng: Rng) -> None:
    """A bicycle: thin tubes seen from the side, a narrow stroke seen from the end."""
    colour = vary(rng, rng.choice(BRIGHT + VEHICLE), 12)
    with canvas.label("bicycle"):
        _wheel_pair(canvas, frame, 1.06, 0.34, (104, 102, 98))
        tubes = (
            ((-0.53, 0.34), (-0.1, 0.36)),
            ((-0.1, 0.36), (-0.25, 0.85)),
            ((-0.25, 0.8), (0.4, 0.8)),
            ((-0.1, 0.36), (0.42, 0.78)),
            ((0.53, 0.34), (0.38, 1.0)),
            ((-0.53, 0.34), (-0.22, 0.76)),
        )
        for tube in tubes:
            stroke(canvas, frame, tube, 0.06, colour, across=False)
        across = facing_frame(canvas, frame.x, frame.z, frame.base)
        stroke(canvas, across, ((0.0, 0.0), (0.0, 0.95)), 0.1, mix(colour, (20, 20, 20), 120))
        stroke(canvas, across, ((-0.25, 1.0), (0.25, 1.0)), 0.06, (34, 34, 36))
        stroke(canvas, across, ((-0.09, 0.9), (0.09, 0.9)), 0.08, (34, 34, 36))


def draw_motorcycle(canvas: Canvas, frame: Frame, rng: Rng) -> None:
    """A motorcycle or scooter: some in the colours of cars, the size of a bicycle, but solid."""
    colour = vary(rng, livery(rng, MOTORCYCLES, VEHICLE), 12)
    with canvas.label("motorcycle"):
        _wheel_pair(canvas, frame, 1.35, 0.31, None)
        body = (
            (-0.85, 0.72),
            (-0.3, 0.35),
            (0.35, 0.35),
            (0.62, 0.62),
            (0.5, 1.0),
            (0.28, 0.92),
            (0.1, 0.82),
            (-0.3, 0.8),
        )
        canvas.plane([frame.at(length, 0.0, height) for length, height in body], colour)
        canvas.plane(
            [
                frame.at(length, 0.0, height)
                for length, height in ((-0.8, 0.76), (-0.1, 0.74), (-0.05, 0.84), (-0.75, 0.88))
            ],
            (30, 30, 32),
        )
        across = facing_frame(canvas, frame.x, frame.z, frame.base)
        canvas.plane(
            [
                across.at(0, a, h)
                for a, h in ((-0.1, 0.0), (0.1, 0.0), (0.22, 0.5), (0.2, 0.95), (-0.2, 0.95), (-0.22, 0.5))
            ],
            mix(colour, (0, 0, 0), 50),
        )
        stroke(canvas, across, ((-0.36, 1.02), (0.36, 1.02)), 0.08, (34, 34, 36))
        disc(canvas, across, (0.0, 0.0, 0.78), 0.1, (222, 216, 196), across=True)


def draw_two_wheeler(canvas: Canvas, kind: str, frame: Frame, rng: Rng) -> None:
    """A bicycle or motorcycle with its rider, who is a class of his own."""
    (draw_bicycle if kind == "bicycle" else draw_motorcycle)(canvas, frame, rng)
    seat = 0.9 if kind == "bicycle" else 0.82
    lean = 0.28 if kind == "bicycle" else 0.14
    coat, trousers = _clothes(rng)
    coat = vary(rng, livery(rng, RIDERS, (coat,)), 10)
    across = facing_frame(canvas, frame.x, frame.z, frame.base)
    with canvas.label("bicyclist" if kind == "bicycle" else "motorcyclist"):
        for foot, shade in (((-0.05, 0.3), 50), ((0.1, 0.42), 0)):
            stroke(
                canvas,
                frame,
                ((-0.2, seat), (0.2, seat - 0.15), foot),
                0.15,
                mix(trousers, (0, 0, 0), shade),
                across=False,
            )
        for side in (-0.16, 0.16):
            stroke(canvas, across, ((side * 0.6, seat), (side, 0.4)), 0.13, trousers)
        stroke(canvas, frame, ((-0.22, seat), (-0.22 + lean, seat + 0.55)), 0.3, coat, across=False)
        canvas.plane(
            [across.at(0, a, h) for a, h in ((-0.16, seat), (0.16, seat), (0.22, seat + 0.55), (-0.22, seat + 0.55))],
            mix(coat, (0, 0, 0), 24),
        )
        stroke(canvas, frame, ((-0.2 + lean, seat + 0.5), (0.4, seat + 0.16)), 0.1, coat, across=False)
        head = Frame(*frame.at(lean - 0.18, 0.0, 0.0)[::2], frame.heading, frame.base)
        facing = facing_frame(canvas, head.x, head.z, frame.base)
        disc(canvas, facing, (0.0, 0.0, seat + 0.72), 0.14, rng.choice(_SKIN), across=True)
        disc(
            canvas,
            facing,
            (0.0, 0.0, seat + 0.78),
            0.14,
            rng.choice(VEHICLE + BRIGHT if kind != "bicycle" else _HAIR),
            across=True,
        )
