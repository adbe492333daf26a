"""Pictures of one prediction: label, confidence, weight of each scale, and all of them on one sheet.

`<stem>_label.png` is a palette image: its values are trainIds, its colours those of the classes. Confidence
and weights are 8-bit grey, white = 1.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmsa_core.config import Passes
from hmsa_core.inference.network.predictor import Tiler
from hmsa_core.io.atomic import write_bytes
from hmsa_core.models.passes import resolve_kind
from hmsa_core.taxonomy import ClassTable

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
_PANEL_WIDTH = 640  # pixels; panels of the sheet
_PANEL_HEIGHT = 1280  # at most
_TITLE = 28  # pixels
_MARGIN = 6  # pixels
_COLUMNS = 3


@dataclass(frozen=True)
class Pictured:
    """One image with everything that is drawn of it."""

    image: UInt8  # HxWx3 RGB
    label: UInt8  # HxW trainIds
    confidence: Float32  # HxW in [0, 1]
    weights: dict[float, Float32]  # scale -> HxW; they sum to 1. Empty where the fusion has no weights.


def picture(tiler: Tiler, image: UInt8, passes: Passes) -> Pictured:
    """Label an image and ask for the weight of each scale (not for the maximum over scales, which has none)."""
    label, confidence = tiler.label(image, passes)
    weights = {} if resolve_kind(passes.kind, tiler.predictor.kind) == "max" else tiler.weights(image, passes)
    return Pictured(image, label, confidence, weights)


def write_pictures(folder: Path, stem: str, shown: Pictured, classes: ClassTable) -> list[Path]:
    """Write all pictures of one image; returns their paths, the contact sheet last."""
    pictures = {
        "label": _palette_png(shown.label, classes.palette()),
        "confidence": _png(_grey(shown.confidence)),
        **{f"weight_{scale:g}x": _png(_grey(weight)) for scale, weight in shown.weights.items()},
        "sheet": _png(contact_sheet(shown, classes)),
    }
    paths = []
    for name, data in pictures.items():
        paths.append(folder / f"{stem}_{name}.png")
        write_bytes(paths[-1], data)
    return paths


def contact_sheet(shown: Pictured, classes: ClassTable) -> UInt8:
    """All maps side by side with titles, uint8 RGB; grey maps: white = 1."""
    colours = classes.palette()[shown.label]
    panels = [
        ("image", shown.image),
        ("label", colours),
        ("label over image", (shown.image // 2 + colours // 2).astype(np.uint8)),
        ("confidence (white = 1)", _as_rgb(_grey(shown.confidence))),
    ]
    panels += [
        (f"weight of {scale:g}x, mean {weight.mean():.2f} (white = 1)", _as_rgb(_grey(weight)))
        for scale, weight in shown.weights.items()
    ]
    tiles = [_panel(title, pixels) for title, pixels in panels]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // _COLUMNS)
    sheet = np.full((rows * (height + _MARGIN) + _MARGIN, _COLUMNS * (width + _MARGIN) + _MARGIN, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y = _MARGIN + (i // _COLUMNS) * (height + _MARGIN)
        x = _MARGIN + (i % _COLUMNS) * (width + _MARGIN)
        sheet[y : y + height, x : x + width] = tile
    return sheet


def _panel(title: str, pixels: UInt8) -> UInt8:
    factor = min(_PANEL_WIDTH / pixels.shape[1], _PANEL_HEIGHT / pixels.shape[0])
    height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    panel = np.full((height + _TITLE, _PANEL_WIDTH, 3), 255, np.uint8)
    panel[_TITLE:, :width] = cv2.resize(pixels, (width, height), interpolation=how)
    cv2.putText(panel, title, (2, _TITLE - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return panel


def _grey(values: Float32) -> UInt8:
    return np.asarray(np.rint(np.clip(values, 0.0, 1.0) * 255), np.uint8)


def _as_rgb(grey: UInt8) -> UInt8:
    return np.repeat(grey[..., None], 3, axis=2)


def _png(pixels: UInt8) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def _palette_png(label: UInt8, palette: UInt8) -> bytes:
    image = Image.fromarray(label, mode="P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
