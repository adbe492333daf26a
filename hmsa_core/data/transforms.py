"""Joint augmentation of an image and its label map, in uint8 and only for the pixels of the crop.

The window of the stored image that a crop shows is cut out first and then resized, so a crop costs the same
for any image size. Images: area averaging down, bicubic up; labels: the nearest pixel, so no class and no
ignored pixel is invented. Colour is one affine map of RGB (brightness, contrast, saturation and hue in random
order, composed into one map). Every random number comes from the crop's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import MEAN, STD, AugmentConfig
from hmsa_core.data.sampling import raw
from hmsa_core.taxonomy import IGNORE

if TYPE_CHECKING:
    import torch

cv2.setNumThreads(1)  # as in `decode`: threads of OpenCV do not survive the fork of a loader process

UInt8 = NDArray[np.uint8]
Size = tuple[int, int]  # height, width
Randint = Callable[[int, int], int]  # both ends included
Mix = Literal["cutmix", "classmix"]

_GREY = np.array([0.299, 0.587, 0.114])  # weights of R, G, B in brightness (ITU-R BT.601)
_MIN_SIGMA = 0.15  # pixels; a weaker blur changes nothing
_CUT_AREA = (0.1, 0.5)  # share of the crop that CutMix replaces


class CropRandom:
    """Random numbers of one crop: a pure function of its seed, the same on any machine and numpy version."""

    def __init__(self, seed: int, purpose: int = 0, count: int = 32) -> None:
        self._numbers = iter(raw(seed, purpose, count=count).tolist())

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        return float(next(self._numbers) >> 11) / (1 << 53)

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def randint(self, low: int, high: int) -> int:
        """Uniform integer, both ends included."""
        return low + int(next(self._numbers) % (high - low + 1))

    def order(self, n: int) -> list[int]:
        """A random order of 0..n-1."""
        keys = [next(self._numbers) for _ in range(n)]
        return sorted(range(n), key=keys.__getitem__)


@dataclass(frozen=True)
class JointAugment:
    """Random scale, crop, flip, colour and blur for training."""

    crop: Size  # of the result
    config: AugmentConfig
    colour: float | None = None  # strength of colour changes; None = `config.colour`
    long_edge: int | None = None  # the image is first resized to this (None = stored size)

    def __call__(
        self, image: UInt8, label: UInt8, centre_xy: tuple[int, int] | None, rng: CropRandom
    ) -> tuple[UInt8, UInt8]:
        """A crop of an image (uint8 HxWx3 RGB) and its label (uint8 HxW trainIds), both contiguous.

        It covers `centre_xy`, a point of the stored image (None = anywhere). Padding is black, in labels 255. A label
        of HxWx2 holds the trainId and 1 where a human gave the label. A crop with more human pixels than other labelled
        ones gets the colour changes of `config`.
        """
        config = self.config
        height, width = label.shape[:2]
        scale = rng.between(config.scale_min, config.scale_max)
        if self.long_edge:
            scale *= self.long_edge / max(height, width)
        scaled = max(1, int(height * scale)), max(1, int(width * scale))
        centre = None
        if centre_xy is not None:
            centre = int(centre_xy[0] * scaled[1] / width), int(centre_xy[1] * scaled[0] / height)
        corner = place(scaled, self.crop, centre, rng.randint)
        flip = rng.unit() < config.flip
        order, factors = rng.order(4), [rng.between(-1.0, 1.0) for _ in range(4)]
        sigma = rng.between(_MIN_SIGMA, max(config.blur_sigma, _MIN_SIGMA)) if rng.unit() < config.blur else 0.0

        def look(patch: UInt8, ids: UInt8) -> UInt8:
            strength = config.colour
            if self.colour is not None and not (ids.ndim == 3 and mostly_human(ids)):
                strength = self.colour
            if strength > 0.0:
                matrix = colour_matrix(patch, order, [strength * f for f in factors])
                patch = np.asarray(cv2.transform(patch, matrix), np.uint8)
            return np.asarray(cv2.GaussianBlur(patch, (0, 0), sigma), np.uint8) if sigma else patch

        return take_crop(image, label, scaled, self.crop, corner, flip=flip, look=look)


def take_crop(
    image: UInt8,
    label: UInt8,
    scaled: Size,
    crop: Size,
    corner: tuple[int, int],
    *,
    flip: bool = False,
    look: Callable[[UInt8, UInt8], UInt8] | None = None,
) -> tuple[UInt8, UInt8]:
    """The crop at `corner` of the image scaled to `scaled`; `look(pixels, labels)` changes pixels before padding.

    The label is uint8 HxW, or HxWxK for K maps.
    """
    y0, y1, top, height = span(label.shape[0], scaled[0], crop[0], corner[0])
    x0, x1, left, width = span(label.shape[1], scaled[1], crop[1], corner[1])
    patch = _resize_image(image[y0:y1, x0:x1], (height, width))
    ids = resize_label(label[y0:y1, x0:x1], (height, width))
    if flip:
        patch, ids = np.asarray(cv2.flip(patch, 1), np.uint8), np.asarray(cv2.flip(ids, 1), np.uint8)
    if look is not None:
        patch = look(patch, ids)
    if (height, width) == crop:
        return np.ascontiguousarray(patch), np.ascontiguousarray(ids)
    left = crop[1] - left - width if flip else left
    out = np.zeros((*crop, 3), np.uint8)
    out_ids = np.full((*crop, *ids.shape[2:]), IGNORE, np.uint8)
    out[top : top + height, left : left + width] = patch
    out_ids[top : top + height, left : left + width] = ids
    return out, out_ids


def _resize_image(image: UInt8, size: Size) -> UInt8:
    if image.shape[:2] == size:
        return image
    # Averaging only if both sides shrink; otherwise cv2 would fall back to bilinear.
    shrink = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size[::-1], interpolation=how), np.uint8)


def to_long_edge(image: UInt8, edge: int) -> UInt8:
    """Bring the longer side to `edge` pixels as training does: averaging down, cubic up; sizes cut to integers."""
    height, width = image.shape[:2]
    if max(height, width) == edge:
        return image
    factor = edge / max(height, width)
    size = (max(1, int(width * factor + 1e-9)), max(1, int(height * factor + 1e-9)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


def resize_label(label: UInt8, size: Size) -> UInt8:
    """Resize a label map, or HxWxK maps, to (height, width) by the nearest pixel centre: values are only copied."""
    if label.shape[:2] == size:
        return label
    return np.asarray(cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def mostly_human(maps: UInt8) -> bool:
    """Whether more of the labelled pixels are human ones than not, in uint8 HxWx2: trainIds, and 1 for human ones."""
    human = maps[..., 1] == 1
    return 2 * int(np.count_nonzero(human)) > int(np.count_nonzero(human | (maps[..., 0] != IGNORE)))


def colour_matrix(image: UInt8, order: list[int], change: list[float]) -> NDArray[np.float32]:
    """One 3x4 affine map for brightness, contrast, saturation and hue.

    Args:
        image: uint8 HxWx3; contrast needs its mean colour.
        order: order of the four changes (0 brightness, 1 contrast, 2 saturation, 3 hue).
        change: signed strength of each; brightness, contrast and saturation are multiplied by 1 + change, hue is
            turned by change / 2 of the full circle about the grey axis.
    """
    linear, offset = np.eye(3), np.zeros(3)
    mean = np.array(cv2.mean(image)[:3])
    for which in order:
        factor = 1.0 + change[which]
        if which == 0:
            step, shift = factor * np.eye(3), np.zeros(3)
        elif which == 1:
            step = factor * np.eye(3)
            shift = np.full(3, (1.0 - factor) * float(_GREY @ (linear @ mean + offset)))
        elif which == 2:
            step, shift = factor * np.eye(3) + (1.0 - factor) * np.outer(np.ones(3), _GREY), np.zeros(3)
        else:
            step, shift = _turn_hue(np.pi * change[which]), np.zeros(3)
        linear, offset = step @ linear, step @ offset + shift
    return np.hstack([linear, offset[:, None]]).astype(np.float32)


def _turn_hue(angle: float) -> NDArray[np.float64]:
    """Rotation about the grey axis (1, 1, 1)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    axis = np.full((3, 3), 1.0 / 3.0)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / np.sqrt(3.0)
    return np.asarray(cosine * np.eye(3) + sine * cross + (1.0 - cosine) * axis)


def pasted_pixels(fine_label: UInt8, kind: Mix, rng: CropRandom) -> NDArray[np.bool_]:
    """Return the pixels (True) of a fine crop, uint8 hxw trainIds, to paste into an auto-labelled crop of its size.

    The kind "classmix" pastes the pixels of half of the classes in the fine crop (Olsson et al. 2021). The kind
    "cutmix" pastes a rectangle with its ignored pixels (Yun et al. 2019).
    """
    height, width = fine_label.shape
    mask = np.zeros((height, width), bool)
    if kind == "classmix":
        present = np.unique(fine_label)
        present = present[present != IGNORE]
        chosen = np.zeros(256, bool)
        chosen[[present[i] for i in _some(len(present), rng)]] = True
        mask = chosen[fine_label]
    else:
        area = rng.between(*_CUT_AREA)
        rows = max(1, int(height * area ** rng.between(0.3, 0.7)))
        columns = min(width, max(1, int(height * width * area / rows)))
        y, x = rng.randint(0, height - rows), rng.randint(0, width - columns)
        mask[y : y + rows, x : x + columns] = True
    return mask


def _some(n: int, rng: CropRandom) -> list[int]:
    """Half of 0..n-1, rounded up, at random, from a new CropRandom: `rng` may not have n random numbers left."""
    seed = rng.randint(0, (1 << 62) - 1)
    return CropRandom(seed, 1, n).order(n)[: -(-n // 2)] if n else []


def normalise(image: UInt8) -> torch.Tensor:
    """uint8 HxWx3 RGB -> float32 3xHxW, (value / 255 - mean) / std, through a table of 256 values per channel."""
    # Imported here: everything else in this module serves programs without torch, too.
    import torch

    out = np.empty((3, *image.shape[:2]), np.float32)
    for channel, table, into in zip(cv2.split(image), _tables(), out, strict=True):
        into[:] = cv2.LUT(channel, table)
    return torch.from_numpy(out)


@cache
def _tables() -> NDArray[np.float32]:
    values = np.arange(256) / 255.0
    return np.stack([((values - mean) / std).astype(np.float32) for mean, std in zip(MEAN, STD, strict=True)])


def normalise_batch(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 Bxhxwx3 RGB -> float32 Bx3xhxw on the device: the values of `normalise`, whatever the device.

    Only bytes are sent to a GPU (without waiting, where they are pinned), which looks them up in the same table.
    """
    import torch

    if device.type == "cpu":
        return torch.stack([normalise(image) for image in images.numpy()])
    pixels = images.to(device, non_blocking=True)
    rows = _table_on(device).gather(0, pixels.view(-1, 3).long())
    return rows.view(pixels.shape).permute(0, 3, 1, 2)  # channels last


@cache
def _table_on(device: torch.device) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(_tables().T)).to(device)


# ---- Where a crop lies. Coordinates are pixels, x to the right, y down. A placement is the crop's upper left corner in
# the scaled image; negative values, or a crop that reaches beyond the other side, mean padding.


def place(scaled: Size, crop: Size, centre_xy: tuple[int, int] | None, randint: Randint) -> tuple[int, int]:
    """(top, left) of a crop in the scaled image; an image that is smaller than the crop is centred in it.

    Args:
        scaled, crop: sizes.
        centre_xy: a point of the scaled image that the crop covers, None = anywhere. (The released code pads without
            moving the point, which may then fall just outside.)
        randint: source of random numbers; gives x first, then y.
    """
    if scaled == crop:
        return 0, 0
    centre_y, centre_x = (None, None) if centre_xy is None else (centre_xy[1], centre_xy[0])
    left = _along(scaled[1], crop[1], centre_x, randint)
    return _along(scaled[0], crop[0], centre_y, randint), left


def _along(length: int, crop: int, centre: int | None, randint: Randint) -> int:
    if length <= crop:
        return -((crop - length) // 2)
    if centre is None:
        return randint(0, length - crop)
    return min(max(randint(centre - crop + 1, centre), 0), length - crop)


def span(stored: int, scaled: int, crop: int, start: int) -> tuple[int, int, int, int]:
    """(first, end, place, length): stored pixels first..end fill `length` pixels at `place` of a crop's side.

    Args:
        stored, scaled, crop: length of the side of the stored image, the scaled one and the crop.
        start: of the crop in the scaled image. Pixels are whole, so the scale is off by less than one.
    """
    first, last = max(start, 0), min(start + crop, scaled)
    low = min(round(first * stored / scaled), stored - 1)
    high = min(max(round(last * stored / scaled), low + 1), stored)
    return low, high, first - start, last - first
