"""Building blocks of objects: local frames, extruded profiles, boxes, and figures that face the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from examples.streets.camera import Point3
from examples.streets.canvas import Canvas, Colour, Material

__all__ = ["CIRCLE", "Frame", "Profile", "box", "disc", "extrude", "facing_frame", "plate", "stroke"]

# Cosine and sine of 16 equal steps, written out: libm may differ between machines.
_HALF = (1.0, 0.923880, 0.707107, 0.382683, 0.0, -0.382683, -0.707107, -0.923880)


def _circle() -> tuple[tuple[float, float], ...]:
    cosines = [*_HALF, *(-value for value in _HALF)]
    return tuple((cosines[i], cosines[(i - 4) % 16]) for i in range(16))


CIRCLE = _circle()


@dataclass(frozen=True)
class Frame:
    """Local axes on the ground: `length` along the heading, `side` to its right, height up."""

    x: float
    z: float
    heading: tuple[float, float] = (0.0, 1.0)
    base: float = 0.0

    def at(self, length: float, side: float, height: float) -> Point3:
        """World point of local metres."""
        hx, hz = self.heading
        return self.x + length * hx + side * hz, self.base + height, self.z + length * hz - side * hx

    def sees(self, canvas: Canvas, normal: tuple[float, float], length: float, side: float) -> bool:
        """Whether a vertical face with this outward (length, side) normal faces the camera."""
        here = canvas.camera.to_view(self.at(length, side, 0.0))
        ahead = canvas.camera.to_view(self.at(length + normal[0], side + normal[1], 0.0))
        return (ahead[0] - here[0]) * here[0] + (ahead[2] - here[2]) * here[2] < 0.0


def facing_frame(canvas: Canvas, x: float, z: float, base: float = 0.0) -> Frame:
    """Frame whose `side` axis lies across the view: for people, poles, crowns of trees."""
    return Frame(x, z, (canvas.camera.sin, canvas.camera.cos), base)


@dataclass(frozen=True)
class Profile:
    """Side view of a vehicle: (length, height) points from the front bumper over the roof to the rear.

    `tags[i]` names the strip from point i to i + 1: "front", "glass", "roof", "rear"...
    """

    points: tuple[tuple[float, float], ...]
    tags: tuple[str, ...]
    width: float


def extrude(
    canvas: Canvas, frame: Frame, profile: Profile, paint: dict[str, Material | Colour], light: tuple[int, int, int]
) -> float:
    """Paint the visible strips and the visible side; returns the side's offset (its sign is the side seen).

    `light`: brightness of top, side, and front/rear in 1/256.
    """
    half = profile.width / 2.0
    side = half if frame.sees(canvas, (0.0, 1.0), 0.0, half) else -half
    strips = []
    for i, tag in enumerate(profile.tags):
        (l0, h0), (l1, h1) = profile.points[i], profile.points[i + 1]
        if tag == "none" or not _strip_visible(canvas, frame, (l0, h0), (l1, h1)):
            continue
        corners = [frame.at(l0, -half, h0), frame.at(l0, half, h0), frame.at(l1, half, h1), frame.at(l1, -half, h1)]
        depth = sum(canvas.camera.to_view(corner)[2] for corner in corners)
        strips.append((-depth, i, tag, corners))
    for _, i, tag, corners in sorted(strips, key=lambda strip: strip[:2]):
        steep = abs(profile.points[i + 1][1] - profile.points[i][1]) > abs(
            profile.points[i + 1][0] - profile.points[i][0]
        )
        canvas.plane(corners, paint.get(tag, paint["body"]), light=light[2] if steep else light[0])
    outline = [frame.at(length, side, height) for length, height in profile.points]
    back = min(p[0] for p in profile.points)
    basis = (frame.at(back, side, 0.0), frame.at(back + 1.0, side, 0.0), frame.at(back, side, 1.0))
    canvas.plane(outline, paint.get("side", paint["body"]), basis=basis, light=light[1])
    return side


def _strip_visible(canvas: Canvas, frame: Frame, start: tuple[float, float], end: tuple[float, float]) -> bool:
    # Outward normal of a strip walked from the front over the roof: turn the edge to the left.
    normal = (end[1] - start[1], -(end[0] - start[0]))
    middle = ((start[0] + end[0]) / 2.0, (start[1] + end[1]) / 2.0)
    here = canvas.camera.to_view(frame.at(middle[0], 0.0, middle[1]))
    out = canvas.camera.to_view(frame.at(middle[0] + normal[0], 0.0, middle[1] + normal[1]))
    return sum((b - a) * a for a, b in zip(here, out, strict=True)) < 0.0


def box(
    canvas: Canvas,
    frame: Frame,
    size: tuple[float, float, float],
    paint: dict[str, Material | Colour],
    light: tuple[int, int, int],
    lift: float = 0.0,
) -> float:
    """A box of (length, width, height) whose bottom is `lift` above the frame's base."""
    length, width, height = size
    top = lift + height
    half = length / 2.0
    points = ((half, lift), (half, top), (-half, top), (-half, lift))
    return extrude(canvas, frame, Profile(points, ("front", "roof", "rear"), width), paint, light)


def plate(
    canvas: Canvas,
    frame: Frame,
    length: float,
    sides: tuple[float, float],
    heights: tuple[float, float],
    material: Material | Colour,
    *,
    light: int = 256,
) -> None:
    """An upright rectangle across the heading, `length` ahead of the frame's origin."""
    (left, right), (low, high) = sides, heights
    corners = [
        frame.at(length, left, low),
        frame.at(length, right, low),
        frame.at(length, right, high),
        frame.at(length, left, high),
    ]
    canvas.plane(corners, material, light=light)


def disc(
    canvas: Canvas,
    frame: Frame,
    centre: tuple[float, float, float],
    radius: float,
    material: Material | Colour,
    *,
    across: bool = False,
    light: int = 256,
) -> None:
    """A 16-gon around (length, side, height), standing along the heading or across it."""
    length, side, height = centre
    points = [
        frame.at(length + (0.0 if across else radius * c), side + (radius * c if across else 0.0), height + radius * s)
        for c, s in CIRCLE
    ]
    canvas.plane(points, material, light=light)


def stroke(
    canvas: Canvas,
    frame: Frame,
    path: Sequence[tuple[float, float]],
    width: float,
    colour: Material | Colour,
    *,
    across: bool = True,
    light: int = 256,
) -> None:
    """Thick lines through (offset, height) points, in the frame's side plane or its length plane."""

    def at(offset: float, height: float) -> Point3:
        return frame.at(0.0, offset, height) if across else frame.at(offset, 0.0, height)

    for (a0, h0), (a1, h1) in pairwise(path):
        length = math.sqrt((a1 - a0) * (a1 - a0) + (h1 - h0) * (h1 - h0)) or 1.0
        dx, dy = (h1 - h0) / length * width / 2.0, -(a1 - a0) / length * width / 2.0
        corners = [at(a0 + dx, h0 + dy), at(a1 + dx, h1 + dy), at(a1 - dx, h1 - dy), at(a0 - dx, h0 - dy)]
        canvas.plane(corners, colour, light=light)
