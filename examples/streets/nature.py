"""Trees, hedges, bushes."""

from __future__ import annotations

from examples.streets.canvas import Canvas, Colour, Material
from examples.streets.palette import GREENS, vary
from examples.streets.rng import Rng
from examples.streets.solids import CIRCLE, Frame, box, facing_frame
from examples.streets.textures import foliage, plain

__all__ = ["draw_bush", "draw_hedge", "draw_tree", "tree_line"]


def _crown(
    canvas: Canvas,
    frame: Frame,
    centre: float,
    radius: tuple[float, float],
    rng: Rng,
    colour: Colour,
    side: float = 0.0,
) -> None:
    points = []
    for c, s in CIRCLE:
        swell = rng.uniform(0.78, 1.12)
        points.append(frame.at(0.0, side + radius[0] * c * swell, centre + radius[1] * s * swell))
    basis = (frame.at(0, 0, 0), frame.at(0, 1, 0), frame.at(0, 0, 1))
    canvas.plane(points, foliage(colour, rng.integer(0, 99)), basis=basis)


def draw_tree(canvas: Canvas, x: float, z: float, rng: Rng, base: float = 0.0) -> None:
    """A street tree: trunk and two or three overlapping crowns, all vegetation."""
    frame = facing_frame(canvas, x, z, base)
    height = rng.uniform(4.5, 10.0)
    clear = height * rng.uniform(0.28, 0.42)
    trunk = rng.uniform(0.12, 0.26)
    bark = vary(rng, (84, 74, 62), 16)
    with canvas.label("vegetation"):
        canvas.plane(
            [
                frame.at(0, -trunk, 0),
                frame.at(0, trunk, 0),
                frame.at(0, trunk * 0.7, clear * 1.4),
                frame.at(0, -trunk * 0.7, clear * 1.4),
            ],
            plain(bark, rng.integer(0, 99), 10),
        )
        colour = vary(rng, rng.choice(GREENS), 12)
        middle, half = (clear + height) / 2.0, (height - clear) / 2.0
        _crown(canvas, frame, middle, (half * rng.uniform(0.75, 1.1), half), rng, colour)
        for side in (-1.0, 1.0):
            _crown(
                canvas,
                frame,
                middle - half * rng.uniform(0.0, 0.4),
                (half * 0.55, half * 0.5),
                rng,
                vary(rng, colour, 12),
                side * half * rng.uniform(0.3, 0.6),
            )


def draw_bush(canvas: Canvas, x: float, z: float, rng: Rng, base: float = 0.0) -> None:
    """A bush."""
    frame = facing_frame(canvas, x, z, base)
    height = rng.uniform(0.7, 2.4)
    with canvas.label("vegetation"):
        _crown(
            canvas,
            frame,
            height * 0.42,
            (height * rng.uniform(0.6, 1.1), height * 0.55),
            rng,
            vary(rng, rng.choice(GREENS), 12),
        )


def draw_hedge(canvas: Canvas, x0: float, s0: float, s1: float, side: int, rng: Rng, light: int) -> None:
    """A clipped hedge along the street."""
    height = rng.uniform(1.0, 2.6)
    colour = vary(rng, rng.choice(GREENS), 10)
    frame = Frame(x0 + side * 0.5, (s0 + s1) / 2.0)
    with canvas.label("vegetation"):
        box(canvas, frame, (s1 - s0, 1.0, height), {"body": foliage(colour, rng.integer(0, 99), 70)}, (270, light, 220))


def tree_line(
    canvas: Canvas,
    start: tuple[float, float],
    end: tuple[float, float],
    height: float,
    leaves: Material,
    rng: Rng,
    light: int,
) -> None:
    """Trees that stand so close that only their common outline is seen, between two (x, z) points."""
    steps = 8
    top = []
    for k in range(steps + 1):
        x, z = (a + (b - a) * k / steps for a, b in zip(start, end, strict=True))
        top.append((x, height * rng.uniform(0.72, 1.0), z))
    outline = [(start[0], 0.0, start[1]), *top, (end[0], 0.0, end[1])]
    basis = ((start[0], 0.0, start[1]), (end[0], 0.0, end[1]), (start[0], 1.0, start[1]))
    with canvas.label("vegetation"):
        canvas.plane(outline, leaves, basis=basis, light=light)
