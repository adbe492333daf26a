"""Pinhole camera over a street: world metres to pixels, clipping, and the rays of a plane's pixels.

World axes: x right, y up (0 = road), z along the street. Only + - * / and square roots are used, which IEEE 754
rounds exactly, so every machine gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["NEAR_M", "Camera", "Point2", "Point3", "clip_to_rect", "rotation"]

Point2: TypeAlias = tuple[float, float]
Point3: TypeAlias = tuple[float, float, float]
NEAR_M = 0.7


def rotation(half_tangent: float) -> tuple[float, float]:
    """(cos, sin) of an angle given by the tangent of its half: rational, so exact everywhere."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


@dataclass(frozen=True)
class Camera:
    """Where the camera is and how it looks; pixel units are those of the label image.

    `bend` (1/m) is the street's curvature: each point is shifted right by bend * distance squared, so the
    street looks the same from everywhere along it and vertical planes stay planes.
    """

    width: int
    height: int
    focal: float
    cx: float
    cy: float
    x: float
    y: float
    z: float
    cos: float = 1.0
    sin: float = 0.0
    bend: float = 0.0

    def to_view(self, point: Point3) -> Point3:
        """World metres to camera metres (x right, y up, z forward)."""
        ahead = point[2] - self.z
        side = point[0] - self.x + self.bend * ahead * ahead
        return (self.cos * side - self.sin * ahead, point[1] - self.y, self.sin * side + self.cos * ahead)

    def project(self, view: Point3) -> Point2:
        """Camera metres to continuous pixel coordinates (pixel p covers [p, p+1))."""
        scale = self.focal / view[2]
        return self.cx + view[0] * scale, self.cy - view[1] * scale

    def polygon(self, views: Sequence[Point3]) -> list[Point2]:
        """Clip a polygon in camera metres at the near plane and project it; empty when nothing is left."""
        kept = _clip_near(views)
        if len(kept) < 3:
            return []
        flat = [self.project(point) for point in kept]
        margin = 6.0
        return clip_to_rect(flat, -margin, -margin, self.width + margin, self.height + margin)


def _clip_near(points: Sequence[Point3]) -> list[Point3]:
    out: list[Point3] = []
    for i, current in enumerate(points):
        previous = points[i - 1]
        if (current[2] >= NEAR_M) != (previous[2] >= NEAR_M):
            t = (NEAR_M - previous[2]) / (current[2] - previous[2])
            out.append(
                (previous[0] + t * (current[0] - previous[0]), previous[1] + t * (current[1] - previous[1]), NEAR_M)
            )
        if current[2] >= NEAR_M:
            out.append(current)
    return out


def _clip_axis(points: list[Point2], axis: int, bound: float, *, keep_above: bool) -> list[Point2]:
    out: list[Point2] = []
    for i, current in enumerate(points):
        previous = points[i - 1]
        inside = current[axis] >= bound if keep_above else current[axis] <= bound
        was_inside = previous[axis] >= bound if keep_above else previous[axis] <= bound
        if inside != was_inside:
            t = (bound - previous[axis]) / (current[axis] - previous[axis])
            crossing = (previous[0] + t * (current[0] - previous[0]), previous[1] + t * (current[1] - previous[1]))
            out.append(crossing)
        if inside:
            out.append(current)
    return out


def clip_to_rect(points: list[Point2], x0: float, y0: float, x1: float, y1: float) -> list[Point2]:
    """Sutherland–Hodgman against an axis-aligned rectangle."""
    for axis, bound, above in ((0, x0, True), (0, x1, False), (1, y0, True), (1, y1, False)):
        if not points:
            return points
        points = _clip_axis(points, axis, bound, keep_above=above)
    return points if len(points) >= 3 else []
