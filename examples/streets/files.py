"""Encoding of one file each: quick PNG, JPEG, palettes. Nothing here decides what is in a picture."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["palette_png", "put", "to_jpeg", "to_png"]


def to_png(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    """PNG of L, RGB, RGBA (8 bit) or L (16 bit) pixels; zlib level 1, since it is read more than it is kept."""
    # OpenCV wants the channels as BGR(A).
    ordered = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    _, data = cv2.imencode(".png", np.ascontiguousarray(ordered), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return bytes(data)


def palette_png(ids: npt.NDArray[np.uint8], palette: list[int]) -> bytes:
    """Mode P PNG whose indices are class ids."""
    image = Image.fromarray(ids)
    image.putpalette(palette)
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def to_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of RGB pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write one file of a folder that is published as a whole by renaming it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
