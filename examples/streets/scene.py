"""One picture with its annotation: a pure function of (seed, data set, split, city, sequence, frame)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.streets.camera import Camera, rotation
from examples.streets.canvas import Canvas, IntArray, LabelObject
from examples.streets.ground import draw_ground, draw_lot_shadow
from examples.streets.items import Item, far_to_near, overlap, shadow_of
from examples.streets.lots import draw_backdrop, draw_lot
from examples.streets.rng import Rng
from examples.streets.roadside import ambient_items
from examples.streets.street import THEMES, VIEW_M, Street, lots, make_street
from examples.streets.traffic import theme_items
from examples.streets.weather import camera_look, develop, paint_sky

__all__ = ["Picture", "city_picture", "vistas_picture"]

EPISODE_FRAMES = 3


@dataclass(frozen=True)
class Picture:
    """RGB uint8 (height, width, 3) and the annotated objects in drawing order."""

    rgb: npt.NDArray[np.uint8]
    objects: tuple[LabelObject, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb.shape[0], self.rgb.shape[1]


def city_picture(
    seed: int,
    split: str,
    city: str,
    sequence: int,
    frame: int,
    size: tuple[int, int],
    supersample: int,
    clutter: float = 1.0,
) -> Picture:
    """A Cityscapes-like picture; `frame` counts from 0 along the drive, `size` = (width, height)."""
    style = Rng(seed, "cityscapes", city)
    drive = Rng(seed, "cityscapes", split, city, sequence)
    first = sequence + style.fork("themes").integer(0, len(THEMES) - 1)
    street = make_street(drive, style.fork("streets"), THEMES[first % len(THEMES)], clutter)
    width, height = size
    pose = drive.fork("pose")
    yaw = pose.spread(0.08) if pose.chance(0.8) else pose.spread(0.24)
    cos, sin = rotation(yaw)
    optics = style.fork("optics")
    camera = Camera(
        width=width,
        height=height,
        focal=width * optics.uniform(1.34, 1.48),
        cx=width * optics.uniform(0.48, 0.52),
        cy=height * (optics.uniform(0.41, 0.46) + pose.spread(0.03)),
        x=pose.spread(0.5),
        y=optics.uniform(1.2, 1.5),
        z=street.step * frame,
        cos=cos,
        sin=sin,
        bend=street.bend,
    )
    theme = THEMES[(first + 3 * (frame // EPISODE_FRAMES)) % len(THEMES)]
    canvas = _paint(camera, street, theme, frame, supersample)
    _paint_car(canvas, style.fork("car"))
    look = camera_look(drive.fork("look"), consumer=False)
    salt = drive.fork("grain", frame).integer(0, 1 << 30)
    return Picture(develop(canvas, street.weather, look, salt), tuple(canvas.objects))


def vistas_picture(
    seed: int, split: str, index: int, size: tuple[int, int], supersample: int, clutter: float = 1.0
) -> Picture:
    """A Mapillary-like picture: any camera, any height, any place on the street."""
    shot = Rng(seed, "vistas", split, index)
    street = make_street(shot.fork("street"), shot.fork("city"), THEMES[index % len(THEMES)], clutter)
    width, height = size
    cos, sin = rotation(shot.spread(0.3))
    walking = shot.chance(0.25)
    x = street.front(1) - 1.0 if walking else shot.spread(1.2)
    camera = Camera(
        width=width,
        height=height,
        focal=max(width, height) * shot.uniform(0.85, 1.25),
        cx=width * 0.5,
        cy=height * shot.uniform(0.38, 0.6),
        x=x,
        y=shot.uniform(1.1, 2.5),
        z=0.0,
        cos=cos,
        sin=sin,
        bend=street.bend,
    )
    canvas = _paint(camera, street, street.theme, 0, supersample)
    if shot.chance(0.2):
        _paint_dashboard(canvas, shot.fork("dash"))
    look = camera_look(shot.fork("look"), consumer=True)
    return Picture(develop(canvas, street.weather, look, shot.integer(0, 1 << 30)), tuple(canvas.objects))


def _paint(camera: Camera, street: Street, theme: str, frame: int, supersample: int) -> Canvas:
    canvas = Canvas(camera, street.weather.air, supersample)
    paint_sky(canvas, street.weather, street.rng.fork("sky").integer(0, 255))
    draw_backdrop(canvas, street, street.rng.fork("backdrop", int(camera.z // 60)), 115.0)
    draw_ground(canvas, street)
    sides = [lot for side in (-1, 1) for lot in lots(street, side, camera.z + VIEW_M)]
    seen = [lot for lot in sides if lot.end > camera.z - 3.0]
    for lot in sorted(seen, key=lambda lot: (-lot.start, lot.side)):
        draw_lot(canvas, street, lot)
    for lot in seen:
        draw_lot_shadow(canvas, street, lot)
    items = [item for item in _items(street, theme, frame) if item.s + item.half[1] > camera.z - 2.0]
    for item in items:
        shadow_of(canvas, item, street)
    for item in far_to_near(items, (camera.x, camera.z)):
        item.paint(canvas)
    return canvas


def _items(street: Street, theme: str, frame: int) -> list[Item]:
    episode = frame // EPISODE_FRAMES
    first = episode * EPISODE_FRAMES
    moving = theme_items(street, theme, episode, street.step * first, frame - first)
    standing = ambient_items(street, street.step * frame)
    return moving + [item for item in standing if item.half[1] < 1.0 or not any(overlap(item, m) for m in moving)]


def _paint_car(canvas: Canvas, rng: Rng) -> None:
    """Hood of the survey car and the border left by rectification: static for a city's camera."""
    width, height = canvas.camera.width, canvas.camera.height
    top = height * rng.uniform(0.885, 0.925)
    tone = rng.integer(24, 80)
    dip = height * 0.05
    hood = [
        (0.0, height + 2.0),
        (0.0, top + dip),
        (width * 0.16, top + dip * 0.2),
        (width * 0.38, top - dip * 0.2),
        (width * 0.62, top - dip * 0.2),
        (width * 0.84, top + dip * 0.2),
        (width + 0.0, top + dip),
        (width + 0.0, height + 2.0),
    ]

    def shine(rows: IntArray, cols: IntArray) -> IntArray:
        edge = int(top * canvas.scale)
        change = (
            tone
            + np.clip(40 - (rows - edge) * 4 // canvas.scale, 0, 40)
            + (np.abs(cols - canvas.width // 2) * 12 // canvas.width)
        )
        return np.repeat(change[:, None], 3, axis=1)

    with canvas.label("ego vehicle"):
        canvas.screen(hood, shine)
    edge = max(width // 256, 1)
    low = height - edge - 0.5
    strips = (
        ("border", [(-1.0, -1.0), (edge - 0.5, -1.0), (edge - 0.5, height + 1.0), (-1.0, height + 1.0)]),
        (
            "border",
            [
                (width - edge + 0.5, -1.0),
                (width + 1.0, -1.0),
                (width + 1.0, height + 1.0),
                (width - edge + 0.5, height + 1.0),
            ],
        ),
        (
            "out of roi",
            [(-1.0, low + 0.5), (width + 1.0, low + 0.5), (width + 1.0, height + 1.0), (-1.0, height + 1.0)],
        ),
    )
    for kind, polygon in strips:
        with canvas.label(kind):
            canvas.screen(polygon, lambda rows, _cols: np.zeros((rows.size, 3), dtype=np.int64))


def _paint_dashboard(canvas: Canvas, rng: Rng) -> None:
    width, height = canvas.camera.width, canvas.camera.height
    top = height * rng.uniform(0.88, 0.95)
    tone = rng.integer(16, 60)
    with canvas.label("ego vehicle"):
        canvas.screen(
            [
                (-1.0, height + 2.0),
                (-1.0, top + 3),
                (width * 0.5, top),
                (width + 1.0, top + 3),
                (width + 1.0, height + 2.0),
            ],
            lambda rows, _cols: np.full((rows.size, 3), tone, dtype=np.int64),
        )
