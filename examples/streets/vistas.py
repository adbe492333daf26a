"""The Mapillary Vistas layout: the combined release of 2021 with v1.2 (and, where wanted, v2.0)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.streets.annotate import draw_vistas
from examples.streets.files import palette_png, put, to_jpeg, to_png
from examples.streets.kinds import KINDS, ClassTable, vistas
from examples.streets.rng import Rng
from examples.streets.scene import Picture, vistas_picture
from examples.streets.spec import DemoSpec

__all__ = ["VistasJob", "vistas_jobs", "vistas_key", "write_vistas_metadata", "write_vistas_picture"]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_PANOPTIC = {"v1.2": "panoptic_2018.json", "v2.0": "panoptic_2020.json"}


@dataclass(frozen=True)
class VistasJob:
    """One picture to write."""

    split: str
    index: int


def vistas_jobs(spec: DemoSpec) -> list[VistasJob]:
    """All pictures of the Vistas-like set."""
    counts = (("training", spec.vistas_training), ("validation", spec.vistas_validation))
    return [VistasJob(split, index) for split, count in counts for index in range(count)]


def vistas_key(seed: int, split: str, index: int) -> str:
    """22 characters of A-Za-z0-9_-; each eighth starts with a hyphen, as some do in the release."""
    rng = Rng(seed, "vistas key", split, index)
    key = "".join(rng.choice(_ALPHABET) for _ in range(22))
    return "-" + key[1:] if index % 8 == 3 else key


def _versions(spec: DemoSpec) -> tuple[str, ...]:
    return ("v1.2", "v2.0") if spec.vistas_v2 else ("v1.2",)


def _palette(table: ClassTable) -> list[int]:
    colours = [value for entry in table.entries for value in entry.colour]
    return colours + [0] * (768 - len(colours))


# Names that v2.0 split or renamed, for the kinds we paint.
_V2_NAMES = {
    "construction--barrier--guard-rail": "construction--barrier--guard-rail",
    "object--support--pole": "object--support--pole",
}


def _names(version: str) -> dict[str, str]:
    if version == "v1.2":
        return {}
    known = {entry.name for entry in vistas(version).entries}
    fallback = vistas(version).entries[-1].name
    names = {}
    for _, key in KINDS.values():
        if key is not None and key not in known:
            close = sorted(name for name in known if name.startswith(key + "-"))
            names[key] = _V2_NAMES.get(key, close[0] if close else fallback)
    return names


def write_vistas_picture(spec: DemoSpec, root: Path, job: VistasJob) -> None:
    """Paint one picture and write its image, labels, instances and panoptic image below `root`."""
    rng = Rng(spec.seed, "vistas size", job.split, job.index)
    size = rng.choice(spec.vistas_sizes)
    picture = vistas_picture(spec.seed, job.split, job.index, size, spec.supersample, spec.clutter)
    key = vistas_key(spec.seed, job.split, job.index)
    put(root / job.split / "images" / f"{key}.jpg", to_jpeg(picture.rgb, rng.integer(*spec.jpeg_quality)))
    for version in _versions(spec):
        table = vistas(version)
        labels, instances = draw_vistas(picture.size, picture.objects, table, _names(version))
        base = root / job.split / version
        put(base / "labels" / f"{key}.png", palette_png(labels, _palette(table)))
        put(base / "instances" / f"{key}.png", to_png(instances))
        segments, rows = _panoptic(labels, instances, table)
        put(base / "panoptic" / f"{key}.png", to_png(segments))
        # One small file a picture; joined into the release's single file when all are there.
        put(base / "panoptic" / f"{key}.part.json", json.dumps(rows).encode())
        if version == "v2.0":
            put(base / "polygons" / f"{key}.json", json.dumps(_polygons(picture, _names(version))).encode())


def _polygons(picture: Picture, names: dict[str, str]) -> dict[str, object]:
    objects: list[dict[str, object]] = []
    for item in picture.objects:
        key = KINDS[item.kind][1]
        if key is not None:
            objects += [
                {"id": len(objects) + n, "label": names.get(key, key), "polygon": [list(p) for p in polygon]}
                for n, polygon in enumerate(item.polygons)
            ]
    return {"width": picture.size[1], "height": picture.size[0], "objects": objects}


def _panoptic(
    labels: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint16], table: ClassTable
) -> tuple[npt.NDArray[np.uint8], list[dict[str, object]]]:
    """Segment-id image (R + 256 G + 65536 B, 0 = void) and the rows of panoptic JSON."""
    ids = instances.astype(np.int64) + 1
    ids[labels == table.void_id] = 0
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    rows: list[dict[str, object]] = []
    for segment in np.unique(ids[ids > 0]).tolist():
        ys, xs = np.nonzero(ids == segment)
        box = [int(xs.min()), int(ys.min()), int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1)]
        # Categories count from 1 in panoptic JSON.
        rows.append(
            {"id": segment, "category_id": (segment - 1) // 256 + 1, "area": int(xs.size), "bbox": box, "iscrowd": 0}
        )
    return rgb, rows


def write_vistas_metadata(spec: DemoSpec, root: Path) -> None:
    """Write `config_*.json` and join the panoptic parts; call when all pictures are written."""
    for version in _versions(spec):
        table = vistas(version)
        labels = [
            {
                "color": list(e.colour),
                "instances": e.has_instances,
                "readable": e.readable,
                "name": e.name,
                "evaluate": e.id != table.void_id,
            }
            for e in table.entries
        ]
        config = {
            "labels": labels,
            "version": float(version.removeprefix("v")),
            "mapping": "public" if version == "v1.2" else "full",
            "folder_structure": "{split}/{version}/{content}/{key:.{22}}.{ext}",
        }
        put(root / f"config_{version}.json", json.dumps(config, indent=1).encode())
        for split in sorted({job.split for job in vistas_jobs(spec)}):
            _join_panoptic(spec, root / split / version / "panoptic", split, version)


def _join_panoptic(spec: DemoSpec, folder: Path, split: str, version: str) -> None:
    images, annotations = [], []
    for job in vistas_jobs(spec):
        if job.split != split:
            continue
        key = vistas_key(spec.seed, split, job.index)
        part = folder / f"{key}.part.json"
        images.append({"id": key, "file_name": f"{key}.jpg"})
        annotations.append({"image_id": key, "file_name": f"{key}.png", "segments_info": json.loads(part.read_bytes())})
        part.unlink()
    categories = [
        {
            "id": e.id + 1,
            "name": e.readable,
            "supercategory": e.name,
            "isthing": int(e.has_instances),
            "color": list(e.colour),
        }
        for e in vistas(version).entries[:-1]
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    put(folder / _PANOPTIC[version], json.dumps(content).encode())
