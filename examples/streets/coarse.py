"""Coarse labels as an annotator draws them: few-vertex polygons inside each thing, the thin and small mostly left out.

Per class: erode the fine mask, outline it with few vertices, jitter them by little more than was eroded (so that about
99 % of what is labelled is right), drop small regions, draw from back to front. Lengths scale with the image height.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from examples.streets.annotate import NamedPolygon
from examples.streets.canvas import IntArray
from examples.streets.kinds import cityscapes
from examples.streets.rng import Rng

__all__ = ["coarse_polygons"]

# Back to front, with what share of the regions an annotator in a hurry bothers to outline.
_ORDER: tuple[tuple[str, float], ...] = (
    ("sky", 1.0),
    ("building", 0.95),
    ("road", 1.0),
    ("sidewalk", 0.9),
    ("terrain", 0.85),
    ("parking", 0.6),
    ("vegetation", 0.9),
    ("wall", 0.85),
    ("fence", 0.8),
    ("guard rail", 0.4),
    ("train", 1.0),
    ("bus", 1.0),
    ("truck", 0.95),
    ("caravan", 0.7),
    ("trailer", 0.7),
    ("car", 0.92),
    ("motorcycle", 0.8),
    ("bicycle", 0.75),
    ("rider", 0.8),
    ("person", 0.75),
    ("traffic sign", 0.45),
    ("traffic light", 0.4),
    ("pole", 0.14),
    ("ego vehicle", 1.0),
)
_THIN = frozenset({"pole", "traffic light", "traffic sign", "person", "rider", "bicycle", "motorcycle", "fence"})


def coarse_polygons(labels: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint16], rng: Rng) -> list[NamedPolygon]:
    """Polygons of a gtCoarse annotation from fine (labelIds, instanceIds)."""
    found: list[NamedPolygon] = []
    for name, share in _ORDER:
        entry = cityscapes().by_name(name)
        mask = (labels == entry.id).astype(np.uint8)
        if mask.any():
            found += _class_polygons(name, share, mask, instances, rng.fork(name))
    return found


def _class_polygons(
    name: str, share: float, mask: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint16], rng: Rng
) -> list[NamedPolygon]:
    height = mask.shape[0]
    thin = name in _THIN
    shrink = max(height // 180, 1) if thin else max(height // 40, 2)
    if name == "pole":
        shrink = height // 360
    padded = cv2.copyMakeBorder(mask, shrink, shrink, shrink, shrink, cv2.BORDER_REPLICATE)
    kernel = np.ones((2 * shrink + 1, 2 * shrink + 1), np.uint8)
    core = cv2.erode(padded, kernel)[shrink : shrink + height, shrink : shrink + mask.shape[1]]
    smallest = height * height // (1200 if thin else 260)
    found = []
    contours, _ = cv2.findContours(np.ascontiguousarray(core), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    regions = sorted((c.reshape(-1, 2).astype(np.int64) for c in contours), key=lambda c: c.min(axis=0).tolist())
    for index, region in enumerate(regions):
        spot = rng.fork(index)
        if cv2.contourArea(region.astype(np.int32)) < smallest or not spot.chance(share):
            continue
        polygon = _few_vertices(region, height, thin, shrink, spot)
        if len(polygon) >= 3:
            found.append(NamedPolygon(name + _group_suffix(name, region, instances), polygon))
    return found


def _few_vertices(region: IntArray, height: int, thin: bool, shrink: int, rng: Rng) -> list[tuple[int, int]]:
    tolerance = height / (110 if thin else 45)
    simple = cv2.approxPolyDP(region.astype(np.int32), tolerance, closed=True).reshape(-1, 2)
    jitter = shrink + (height // 128 if thin else height // 64)
    return [(int(x) + rng.integer(-jitter, jitter), int(y) + rng.integer(-jitter, jitter)) for x, y in simple]


def _group_suffix(name: str, region: IntArray, instances: npt.NDArray[np.uint16]) -> str:
    """`group` when one outline runs around several instances, as annotators mark a row of parked cars."""
    entry = cityscapes().by_name(name)
    if not entry.has_instances:
        return ""
    low, high = region.min(axis=0), region.max(axis=0)
    inside = instances[low[1] : high[1] + 1, low[0] : high[0] + 1]
    return "group" if np.unique(inside[inside // 1000 == entry.id]).size > 1 else ""
