"""A picture and its annotation, painted together from far to near.

The picture is painted at `supersample` times the label's resolution and averaged at the end, so edges are soft. The
annotation is a list of polygons with whole-number vertices; drawing them in order with Pillow (as the official
Cityscapes script does) *is* the label, so `polygons.json` and `labelIds.png` cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from examples.streets.camera import Camera, Point2, Point3

__all__ = ["Atmosphere", "Canvas", "Colour", "IntArray", "LabelObject", "Material", "Polygon", "fill_polygon"]

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Colour: TypeAlias = tuple[int, int, int]
Polygon: TypeAlias = list[tuple[int, int]]
# A material turns texture coordinates (millimetres) into colours (n, 3), or (n, 4) with opacity 0..255.
Material: TypeAlias = Callable[[IntArray, IntArray], IntArray]
_FAR_M = 400.0


@dataclass(frozen=True)
class Atmosphere:
    """Air between camera and object: colour and strength (1/256 per metre, at most `limit`)."""

    haze: Colour
    per_m: float
    limit: int


@dataclass
class LabelObject:
    """One annotated object: kind (see `kinds.py`) and the polygons of its visible outline."""

    kind: str
    polygons: list[Polygon] = field(default_factory=list)


def fill_polygon(shape: tuple[int, int], polygon: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Pixels of a polygon on a (height, width) grid, by Pillow's rule (border included)."""
    image = Image.new("L", (shape[1], shape[0]))
    ImageDraw.Draw(image).polygon(list(polygon), fill=1)
    return np.asarray(image).astype(bool)


def _cross(a: Point3, b: Point3) -> Point3:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Point3, b: Point3) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _minus(a: Point3, b: Point3) -> Point3:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _unit(a: Point3) -> Point3:
    length = math.sqrt(_dot(a, a))
    return a[0] / length, a[1] / length, a[2] / length


class Canvas:
    """Painter's canvas for one camera view."""

    def __init__(self, camera: Camera, atmosphere: Atmosphere, supersample: int) -> None:
        self.camera = camera
        self.atmosphere = atmosphere
        self.scale = supersample
        self.height, self.width = camera.height * supersample, camera.width * supersample
        self.rgb = np.zeros((self.height, self.width, 3), dtype=np.int64)
        self.objects: list[LabelObject] = []
        self._open: list[tuple[str, list[Polygon], list[LabelObject]]] = []

    # ---- annotation -------------------------------------------------------------------------------------------

    @contextmanager
    def label(self, kind: str) -> Iterator[None]:
        """Everything painted inside belongs to one object of this kind; inner labels lie on top of it."""
        self._open.append((kind, [], []))
        yield
        kind, outlines, inner = self._open.pop()
        merged = self._outline(outlines)
        found = [LabelObject(kind, merged), *inner] if merged else inner
        (self._open[-1][2] if self._open else self.objects).extend(found)

    def _outline(self, outlines: list[Polygon]) -> list[Polygon]:
        if len(outlines) <= 1:
            return outlines
        xs = [x for polygon in outlines for x, _ in polygon]
        ys = [y for polygon in outlines for _, y in polygon]
        x0, y0 = min(xs), min(ys)
        image = Image.new("L", (max(xs) - x0 + 1, max(ys) - y0 + 1))
        pen = ImageDraw.Draw(image)
        for polygon in outlines:
            pen.polygon([(x - x0, y - y0) for x, y in polygon], fill=1)
        contours, _ = cv2.findContours(np.array(image), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        contours = sorted(contours, key=lambda c: (-float(cv2.contourArea(c)), c.reshape(-1).tolist()))
        merged: list[Polygon] = []
        for contour in contours:
            points = [(int(x) + x0, int(y) + y0) for x, y in contour.reshape(-1, 2)]
            if not merged or (len(points) >= 3 and cv2.contourArea(contour) >= 3):
                merged.append(points + [points[-1]] * (3 - len(points)))
        return merged

    def _record(self, flat: list[Point2]) -> None:
        if self._open:
            polygon = [(round(x - 0.5), round(y - 0.5)) for x, y in flat]
            limit_x, limit_y = self.camera.width, self.camera.height
            xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
            if min(xs) < limit_x and max(xs) >= 0 and min(ys) < limit_y and max(ys) >= 0:
                self._open[-1][1].append(polygon)

    # ---- paint ------------------------------------------------------------------------------------------------

    def _pixels(self, flat: list[Point2]) -> tuple[IntArray, IntArray]:
        scale = self.scale
        points = [(round(x * scale - 0.5), round(y * scale - 0.5)) for x, y in flat]
        x0, x1 = max(min(p[0] for p in points), 0), min(max(p[0] for p in points), self.width - 1)
        y0, y1 = max(min(p[1] for p in points), 0), min(max(p[1] for p in points), self.height - 1)
        if x0 > x1 or y0 > y1:
            empty = np.empty(0, dtype=np.int64)
            return empty, empty
        mask = fill_polygon((y1 - y0 + 1, x1 - x0 + 1), [(x - x0, y - y0) for x, y in points])
        rows, cols = np.nonzero(mask)
        return rows + y0, cols + x0

    def _blend(self, rows: IntArray, cols: IntArray, colours: IntArray, depth: FloatArray | float) -> None:
        air = self.atmosphere
        strength = np.minimum(np.asarray(depth) * air.per_m, air.limit).astype(np.int64)
        rgb = colours[:, :3]
        rgb = rgb + (((np.array(air.haze) - rgb) * strength[..., None]) >> 8)
        if colours.shape[1] == 4:
            old = self.rgb[rows, cols]
            rgb = old + (((rgb - old) * colours[:, 3:]) >> 8)
        self.rgb[rows, cols] = rgb

    def plane(
        self,
        points: Sequence[Point3],
        material: Material | Colour,
        *,
        basis: tuple[Point3, Point3, Point3] | None = None,
        light: int = 256,
    ) -> None:
        """Paint a flat polygon in the world; `basis` = texture origin, a point along u, a point along v.

        Without a basis: origin the first point, u towards the second, v towards the last. `light` in 1/256.
        """
        views = [self.camera.to_view(point) for point in points]
        flat = self.camera.polygon(views)
        if not flat:
            return
        self._record(flat)
        rows, cols = self._pixels(flat)
        if rows.size == 0:
            return
        if not callable(material):
            depth = sum(max(view[2], 0.0) for view in views) / len(views)
            lit = (np.array(material, dtype=np.int64) * light) >> 8
            self._blend(rows, cols, np.broadcast_to(lit, (rows.size, 3)), depth)
            return
        frame = basis or (points[0], points[1], points[-1])
        u, v, distance = self._texture_coordinates(frame, rows, cols)
        colours = material(u, v)
        if light != 256:
            colours = colours.copy()
            colours[:, :3] = (colours[:, :3] * light) >> 8
        self._blend(rows, cols, colours, distance)

    def _texture_coordinates(
        self, frame: tuple[Point3, Point3, Point3], rows: IntArray, cols: IntArray
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """(u, v) in millimetres and distance in metres of pixels seen on a plane."""
        camera = self.camera
        origin, along_u, along_v = (camera.to_view(point) for point in frame)
        u_axis, v_axis = _unit(_minus(along_u, origin)), _unit(_minus(along_v, origin))
        normal = _cross(u_axis, v_axis)
        square = _dot(normal, normal)
        dual_u, dual_v = _cross(v_axis, normal), _cross(normal, u_axis)
        x = ((cols + 0.5) / self.scale - camera.cx) / camera.focal
        y = (camera.cy - (rows + 0.5) / self.scale) / camera.focal
        facing = normal[0] * x + normal[1] * y + normal[2]
        facing = np.where(np.abs(facing) < 1e-9, 1e-9, facing)
        distance = np.clip(_dot(normal, origin) / facing, 0.1, _FAR_M)
        mm = []
        for dual in (dual_u, dual_v):
            metres = (distance * (dual[0] * x + dual[1] * y + dual[2]) - _dot(dual, origin)) / square
            mm.append(np.floor(np.clip(metres, -900.0, 900.0) * 1000.0).astype(np.int64))
        return mm[0], mm[1], distance

    def darken(self, points: Sequence[Point3], light: int) -> None:
        """Multiply a flat polygon of the picture by light/256 (a shadow; the annotation is untouched)."""
        flat = self.camera.polygon([self.camera.to_view(point) for point in points])
        if flat:
            rows, cols = self._pixels(flat)
            self.rgb[rows, cols] = (self.rgb[rows, cols] * light) >> 8

    def screen(self, polygon: Sequence[Point2], colours: Callable[[IntArray, IntArray], IntArray]) -> None:
        """Paint a polygon given in label pixels (sky, hood, border); `colours` gets rows and columns."""
        flat = list(polygon)
        self._record(flat)
        rows, cols = self._pixels(flat)
        if rows.size:
            self.rgb[rows, cols] = colours(rows, cols)

    def reduce(self) -> IntArray:
        """The picture at label resolution: the rounded mean of each block of sub-pixels."""
        if self.scale == 1:
            return self.rgb
        s = self.scale
        blocks = self.rgb.reshape(self.camera.height, s, self.camera.width, s, 3)
        return np.asarray((blocks.sum(axis=(1, 3)) + s * s // 2) // (s * s))
