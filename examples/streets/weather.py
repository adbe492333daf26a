"""Light and camera look: sun, shadows' strength, sky, haze, and what lens and sensor do to the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.streets.canvas import Atmosphere, Canvas, Colour, IntArray
from examples.streets.rng import Rng, noise_tile, white_noise
from examples.streets.textures import mix

__all__ = ["Look", "Weather", "camera_look", "develop", "make_weather", "paint_sky"]

_TIMES = (("overcast", 9), ("sun", 7), ("dusk", 3), ("backlight", 2))


@dataclass(frozen=True)
class Weather:
    """Light of one drive. Brightness values are in 1/256; `sun_side` is the side the sun stands on."""

    name: str
    sky_low: Colour
    sky_high: Colour
    clouds: int
    sun_side: int
    lit: int
    shade: int
    front: int
    shadow: int
    tint: Colour
    exposure: int
    glow: int
    air: Atmosphere
    lamps: bool

    def facing(self, side: int) -> int:
        """Brightness of a wall on this side of the street (-1 left, 1 right): it looks to the other side."""
        return self.lit if side != self.sun_side else self.shade


def make_weather(rng: Rng) -> Weather:
    """Draw the light of a drive."""
    name = rng.weighted(_TIMES)
    low: Colour = (206, 210, 214)
    high: Colour = (176, 188, 200)
    lit, shade, front, shadow, tint, exposure, glow = 262, 240, 238, 226, (256, 256, 256), 256, 0
    if name == "sun":
        low, high = (204, 216, 228), (118, 158, 206)
        lit, shade, front, shadow, tint = 300, 186, 226, 150, (264, 258, 244)
    elif name == "dusk":
        low, high = (214, 168, 140), (104, 112, 150)
        lit, shade, front, shadow, tint, exposure = 236, 214, 210, 228, (252, 240, 262), 206
    elif name == "backlight":
        low, high = (250, 240, 214), (206, 212, 214)
        lit, shade, front, shadow, tint, exposure, glow = 206, 180, 158, 170, (268, 256, 236), 232, 84
    low, high = (mix(colour, (128, 128, 128), rng.integer(0, 40)) for colour in (low, high))
    exposure += rng.integer(-16, 16)
    haze = mix(low, (150, 150, 150), 90)
    air = Atmosphere(haze, rng.uniform(0.3, 1.1), 130)
    return Weather(
        name=name,
        sky_low=low,
        sky_high=high,
        clouds=rng.integer(0, 40) if name != "overcast" else rng.integer(8, 26),
        sun_side=rng.choice((-1, 1)),
        lit=lit,
        shade=shade,
        front=front,
        shadow=shadow,
        tint=tint,
        exposure=exposure,
        glow=glow,
        air=air,
        lamps=name == "dusk" and rng.chance(0.8),
    )


def paint_sky(canvas: Canvas, weather: Weather, salt: int) -> None:
    """Fill the whole canvas with sky: gradient and clouds; everything else is painted over it."""
    horizon = max(int(canvas.camera.cy * canvas.scale), 1)
    low, high = np.array(weather.sky_low), np.array(weather.sky_high)
    tile = noise_tile(6)

    def colours(rows: IntArray, cols: IntArray) -> IntArray:
        share = np.clip(256 * rows // horizon, 0, 256)
        base = high + (((low - high) * share[:, None]) >> 8)
        step = max(canvas.width // 220, 1)
        cloud = tile[(rows * 3 // step + salt) % 256, (cols // step + 3 * salt) % 256].astype(np.int64)
        return np.asarray(base + (np.maximum(cloud, 0) * weather.clouds >> 6)[:, None])

    width, height = canvas.camera.width, canvas.camera.height
    with canvas.label("sky"):
        canvas.screen([(-2.0, -2.0), (width + 2.0, -2.0), (width + 2.0, height + 2.0), (-2.0, height + 2.0)], colours)


@dataclass(frozen=True)
class Look:
    """Lens and sensor: all strengths in 1/256 unless named."""

    cast: Colour
    contrast: int
    vignette: int
    soften: int
    motion_px: int
    grain: int


def camera_look(rng: Rng, *, consumer: bool) -> Look:
    """The survey car's camera is steady; pictures of many hands (`consumer`) differ from one to the next."""
    if consumer:
        warm = rng.integer(-22, 22)
        return Look(
            cast=(256 + warm, 256 + rng.integer(-6, 10), 256 - warm),
            contrast=rng.integer(230, 310),
            vignette=rng.integer(20, 110),
            soften=rng.integer(0, 1),
            motion_px=rng.weighted(((0, 7), (1, 2), (2, 1))),
            grain=rng.integer(2, 8),
        )
    return Look(
        cast=(250 + rng.integer(-5, 5), 256, 250 + rng.integer(-5, 5)),
        contrast=rng.integer(232, 276),
        vignette=rng.integer(0, 30),
        soften=rng.weighted(((0, 5), (1, 1))),
        motion_px=rng.weighted(((0, 8), (1, 1))),
        grain=rng.integer(1, 4),
    )


def _smooth(image: IntArray, axis: int) -> IntArray:
    padded = np.concatenate([np.take(image, [0], axis), image, np.take(image, [-1], axis)], axis=axis)
    n = image.shape[axis]
    before, here, after = (np.take(padded, range(k, k + n), axis) for k in range(3))
    return np.asarray((before + 2 * here + after + 2) >> 2)


def _glow(image: IntArray, canvas: Canvas, weather: Weather) -> IntArray:
    """Veil of light around a sun just above the horizon."""
    height, width = image.shape[:2]
    x = int(canvas.camera.cx) + weather.sun_side * width // 8
    y = int(canvas.camera.cy) - height // 10
    rows, cols = np.arange(height)[:, None], np.arange(width)[None, :]
    square = (cols - x) ** 2 + (rows - y) ** 2
    veil = weather.glow * width * width // (width * width + 24 * square)
    return np.asarray(image + (((np.array((255, 244, 214)) - image) * veil[..., None]) >> 8))


def develop(canvas: Canvas, weather: Weather, look: Look, salt: int) -> npt.NDArray[np.uint8]:
    """Turn the painted radiance into an 8-bit RGB photograph (height, width, 3)."""
    image = canvas.reduce()
    height, width = image.shape[:2]
    gains = [weather.tint[c] * look.cast[c] // 256 * weather.exposure // 256 for c in range(3)]
    image = (image * np.array(gains)) >> 8
    if weather.glow:
        image = _glow(image, canvas, weather)
    if look.vignette:
        rows, cols = np.arange(height)[:, None], np.arange(width)[None, :]
        far = (2 * cols - width) ** 2 * 256 // (width * width) + (2 * rows - height) ** 2 * 256 // (height * height)
        image = (image * (256 - (look.vignette * far >> 9))[..., None]) >> 8
    image = 118 + (((image - 118) * look.contrast) >> 8)
    pixel = max(width // 256, 1)
    for _ in range(look.soften * pixel):
        image = _smooth(_smooth(image, 0), 1)
    for _ in range(look.motion_px * pixel):
        image = _smooth(image, 1)
    grain = sum((white_noise((height, width), salt + k) for k in range(2)), np.zeros((height, width), np.int64)) - 255
    chroma = [white_noise((height, width), salt + 11 + c) - 128 for c in range(3)]
    image = image + (grain * look.grain >> 7)[..., None] + (np.stack(chroma, axis=2) * look.grain >> 9)
    return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)
