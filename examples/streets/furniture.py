"""Poles, lamps, traffic lights and signs, bins, posters: the thin and the small."""

from __future__ import annotations

from examples.streets.canvas import Canvas, Colour
from examples.streets.palette import BRIGHT, MASONRY, METAL, VEHICLE, vary
from examples.streets.rng import Rng
from examples.streets.solids import CIRCLE, Frame, box, disc, facing_frame, plate, stroke

__all__ = ["draw_bin", "draw_bollards", "draw_lamp", "draw_mast", "draw_poster", "draw_sign", "draw_traffic_light"]

_SIGN_RED: Colour = (170, 38, 36)
_SIGN_BLUE: Colour = (36, 76, 148)
_SIGN_WHITE: Colour = (214, 214, 208)
_FACES = ((_SIGN_RED, _SIGN_WHITE), (_SIGN_BLUE, _SIGN_WHITE), (_SIGN_WHITE, (190, 150, 30)), (_SIGN_BLUE, _SIGN_BLUE))
_OUTLINES: tuple[tuple[tuple[float, float], ...], ...] = (
    CIRCLE,
    ((-1.0, -0.8), (1.0, -0.8), (0.0, 0.95)),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((-1.8, -0.7), (1.8, -0.7), (1.8, 0.7), (-1.8, 0.7)),
    ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)),
)
# Green, amber, red from below: off and on.
_SIGNALS: tuple[tuple[Colour, Colour], ...] = (
    ((34, 70, 40), (90, 236, 130)),
    ((76, 62, 26), (246, 190, 60)),
    ((74, 26, 24), (246, 60, 48)),
)


def _pole(canvas: Canvas, frame: Frame, height: float, width: float, colour: Colour, kind: str = "pole") -> None:
    with canvas.label(kind):
        plate(canvas, frame, 0.0, (-width / 2, width / 2), (0.0, height), colour)


def draw_lamp(canvas: Canvas, x: float, z: float, rng: Rng, *, reach: float, lit: bool) -> None:
    """A street lamp whose arm reaches `reach` metres over the road (negative: to the left)."""
    frame = Frame(x, z, (0.0, 1.0))
    colour = vary(rng, rng.choice(METAL), 10)
    height = rng.uniform(6.0, 8.5)
    with canvas.label("pole"):
        stroke(canvas, facing_frame(canvas, x, z), ((0.0, 0.0), (0.0, height)), 0.2, colour)
        stroke(canvas, frame, ((0.0, height), (reach, height + 0.5)), 0.15, colour)
    with canvas.label("street light"):
        stroke(
            canvas,
            frame,
            ((reach, height + 0.46), (reach * 1.35, height + 0.5)),
            0.3,
            (255, 232, 170) if lit else (66, 68, 70),
        )


def draw_mast(canvas: Canvas, x: float, z: float, rng: Rng) -> None:
    """A bare pole: tram mast, telephone pole, flag pole."""
    kind = "utility pole" if rng.chance(0.4) else "pole"
    colour = vary(rng, (96, 82, 66) if kind == "utility pole" else rng.choice(METAL), 12)
    _pole(canvas, facing_frame(canvas, x, z), rng.uniform(5.0, 9.0), rng.uniform(0.2, 0.3), colour, kind)


def draw_bollards(canvas: Canvas, x: float, z: float, rng: Rng) -> None:
    """Two or three short posts along the kerb."""
    colour = vary(rng, rng.choice(METAL), 12)
    for k in reversed(range(rng.integer(2, 3))):
        _pole(canvas, facing_frame(canvas, x, z + 1.6 * k), 1.0, 0.17, colour)


def draw_traffic_light(canvas: Canvas, x: float, z: float, rng: Rng, *, reach: float) -> None:
    """Signal on a pole, and a second head over the lane when `reach` is not zero."""
    colour = vary(rng, rng.choice(METAL), 10)
    frame = facing_frame(canvas, x, z)
    on = rng.integer(0, 2)
    heads = [(0.0, 2.2)]
    if reach:
        _pole(canvas, frame, 5.4, 0.2, colour)
        with canvas.label("pole"):
            stroke(canvas, frame, ((0.0, 5.3), (reach, 5.5)), 0.15, colour)
        heads.append((reach, 4.7))
    else:
        _pole(canvas, frame, 3.4, 0.18, colour)
    for side, low in heads:
        with canvas.label("traffic light"):
            plate(canvas, frame, 0.0, (side - 0.34, side + 0.34), (low - 0.06, low + 1.42), (186, 186, 180))
            plate(canvas, frame, 0.0, (side - 0.25, side + 0.25), (low, low + 1.36), (28, 30, 28))
            for k, (dark, bright) in enumerate(_SIGNALS):
                disc(canvas, frame, (0.0, side, low + 0.26 + 0.42 * k), 0.18, bright if k == on else dark, across=True)


def draw_sign(canvas: Canvas, x: float, z: float, rng: Rng) -> None:
    """A traffic sign on its pole; sometimes only its grey back is seen."""
    frame = facing_frame(canvas, x, z)
    low = rng.uniform(2.0, 2.5)
    _pole(canvas, frame, low + 0.5, 0.12, vary(rng, rng.choice(METAL), 10))
    back = rng.chance(0.15)
    for k in range(rng.weighted(((1, 3), (2, 1)))):
        bottom = low + 0.75 * k - 0.4
        with canvas.label("traffic sign back" if back else "traffic sign"):
            _plate(canvas, frame, bottom, rng, back=back)


def _plate(canvas: Canvas, frame: Frame, bottom: float, rng: Rng, *, back: bool) -> None:
    outline = rng.choice(_OUTLINES)
    rim, inner = rng.choice(_FACES)
    if back:
        rim = inner = (120, 122, 122)
    radius = rng.uniform(0.42, 0.56)
    for colour, size in ((rim, 1.0), (inner, 0.62)):
        canvas.plane(
            [frame.at(0.0, radius * size * a, bottom + radius + radius * size * b) for a, b in outline], colour
        )


def draw_bin(canvas: Canvas, x: float, z: float, rng: Rng) -> None:
    """Bin, letter box or switch box: void to Cityscapes, classes of their own in Vistas."""
    kind = rng.choice(("trash can", "junction box", "mailbox"))
    colour = vary(
        rng, {"trash can": rng.choice(VEHICLE), "junction box": (122, 124, 116), "mailbox": (196, 160, 40)}[kind], 12
    )
    size = {"trash can": (0.6, 0.6, 1.0), "junction box": (0.5, 1.1, 1.25), "mailbox": (0.4, 0.5, 1.2)}[kind]
    with canvas.label(kind):
        box(canvas, Frame(x, z), size, {"body": colour}, (270, 240, 220))


def draw_poster(canvas: Canvas, x: float, z: float, rng: Rng) -> None:
    """A poster board or a banner: colourful and void to Cityscapes."""
    frame = facing_frame(canvas, x, z)
    kind, (low, high, half) = rng.choice((("billboard", (1.2, 3.6, 1.7)), ("banner", (0.5, 1.6, 1.2))))
    with canvas.label(kind):
        plate(canvas, frame, 0.0, (-half, half), (low, high), vary(rng, rng.choice(BRIGHT + MASONRY), 20))
        plate(canvas, frame, 0.0, (-half * 0.8, half * 0.3), (low + 0.3, high - 0.3), vary(rng, rng.choice(BRIGHT), 20))
