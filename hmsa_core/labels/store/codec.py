"""Bytes of one map as a standard lossless image: PNG, or WebP where a store asks for it.

PNG settings were chosen by measuring (research/bench/bench_store.py): run-length strategy with filter Up for
labels and Paeth for codes is 5 to 10 times faster to write than Pillow's default at 0.85 to 1.03 of its bytes.
"""

from __future__ import annotations

import io
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmsa_core.io.errors import InputError, StoreError

__all__ = ["CODECS", "Codec", "decode", "encode", "png_bytes"]

Codec = Literal["png", "webp"]
CODECS: tuple[Codec, ...] = ("png", "webp")
_WEBP_MAX_SIDE = 16383  # limit of the format

_NONE, _UP, _PAETH = 8, 32, 128  # libpng's flags of row filters
_FILTER_KEY = getattr(cv2, "IMWRITE_PNG_FILTER", None)  # older OpenCV chooses the filter itself: larger, same pixels
_RLE, _FILTERED = cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_STRATEGY_FILTERED
_SMALL = 1 << 19  # pixels


def _png(strategy: int, level: int, row_filter: int) -> list[int]:
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    return options if _FILTER_KEY is None else [*options, _FILTER_KEY, row_filter]


# The smallest result is kept. Slow settings are only tried on small maps, where they win and cost little.
_LABEL = [_png(_RLE, 3, _UP), _png(_RLE, 3, _NONE)]
_LARGE = {"label": _LABEL, "source": _LABEL, "confidence": [_png(_RLE, 3, _PAETH)]}
_EXTRA = {
    "label": [_png(_FILTERED, 9, _NONE)],
    "source": [_png(_FILTERED, 9, _NONE)],
    "confidence": [_png(_FILTERED, 9, _PAETH), _png(_FILTERED, 6, _UP)],
}


def encode(array: NDArray[np.uint8], what: Literal["label", "confidence", "source"], codec: Codec) -> bytes:
    """Losslessly compress a uint8 HxW map."""
    if codec == "webp":
        return _encode_webp(array)
    candidates = _LARGE[what] + (_EXTRA[what] if array.size <= _SMALL else [])
    return min((png_bytes(array, options) for options in candidates), key=len)


def png_bytes(array: NDArray[np.uint8], options: list[int] | None = None) -> bytes:
    """An 8-bit PNG, grey or (RGB in, as everywhere) colour, by default as small as is quick to make."""
    if array.ndim == 3:
        array = np.ascontiguousarray(array[:, :, ::-1])  # cv2 writes BGR
    _, data = cv2.imencode(".png", array, options or [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return data.tobytes()


def _encode_webp(array: NDArray[np.uint8]) -> bytes:
    if max(array.shape) > _WEBP_MAX_SIDE:
        raise InputError(f"a map of {array.shape} is too large for WebP", hint="use codec png")
    # Grey goes into all three channels; the subtract-green transform makes the copies free.
    file = io.BytesIO()
    Image.fromarray(array).convert("RGB").save(file, "WEBP", lossless=True, quality=40, method=2, exact=True)
    return file.getvalue()


def decode(data: bytes, codec: Codec) -> NDArray[np.uint8]:
    """Undo `encode`; bytes that are no such image are a StoreError.

    Callers check digests first: a decoder that succeeds proves nothing about the bytes.
    """
    flag = cv2.IMREAD_UNCHANGED if codec == "png" else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise StoreError(f"a stored {codec} image could not be decoded ({error})") from error
    if image is None or image.dtype != np.uint8 or image.ndim != (2 if codec == "png" else 3):
        raise StoreError(f"a stored {codec} image could not be decoded to 8-bit grey")
    return np.ascontiguousarray(image if codec == "png" else image[:, :, 1], np.uint8)
