"""A plain PIL + numpy loader with the augmentation of `hmsa_core.data`: what `bench_loader.py` compares with.

Written the way loaders of the field are: decode the whole image, scale the whole image (bicubic) and label
(nearest), pad, crop, flip, colour jitter with ImageEnhance and HSV, Gaussian blur, then float and normalise.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class PlainLoader:
    """Crops of (image path, label path, centre or None); `ids` maps file ids to trainIds."""

    def __init__(self, items: list[tuple[Path, Path, tuple[int, int] | None]], ids: Any, crop: tuple[int, int]) -> None:
        self.items, self.ids, self.crop = items, np.asarray(ids), crop

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rng = random.Random(index)
        image_path, label_path, centre = self.items[index]
        image = Image.open(image_path).convert("RGB")
        label = Image.fromarray(self.ids[np.asarray(Image.open(label_path))])
        image, label = self._scale_and_crop(image, label, centre, rng)
        if rng.random() < 0.5:
            image, label = ImageOps.mirror(image), ImageOps.mirror(label)
        image = self._colour(image, rng)
        if rng.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 1.5)))
        pixels = (np.asarray(image, np.float32) / 255.0 - MEAN) / STD
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), np.asarray(label).astype(np.int64)

    def _scale_and_crop(
        self, image: Image.Image, label: Image.Image, centre: tuple[int, int] | None, rng: random.Random
    ) -> tuple[Image.Image, Image.Image]:
        scale = rng.uniform(0.5, 2.0)
        size = int(image.width * scale), int(image.height * scale)
        image, label = image.resize(size, Image.Resampling.BICUBIC), label.resize(size, Image.Resampling.NEAREST)
        height, width = self.crop
        pad_x, pad_y = max(0, width - size[0]), max(0, height - size[1])
        if pad_x or pad_y:
            border = (pad_x // 2, pad_y // 2, pad_x - pad_x // 2, pad_y - pad_y // 2)
            image, label = ImageOps.expand(image, border, 0), ImageOps.expand(label, border, 255)
        x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        if centre is not None:
            cx, cy = int(centre[0] * scale), int(centre[1] * scale)
            x = min(max(rng.randint(cx - width + 1, cx), 0), image.width - width)
            y = min(max(rng.randint(cy - height + 1, cy), 0), image.height - height)
        box = (x, y, x + width, y + height)
        return image.crop(box), label.crop(box)

    @staticmethod
    def _colour(image: Image.Image, rng: random.Random) -> Image.Image:
        steps = [0, 1, 2, 3]
        rng.shuffle(steps)
        for step in steps:
            if step < 3:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
                image = enhance(image).enhance(rng.uniform(0.75, 1.25))
            else:
                hue, saturation, value = image.convert("HSV").split()
                turned = (np.asarray(hue).astype(np.int16) + int(rng.uniform(-0.125, 0.125) * 255)).astype(np.uint8)
                image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        return image
