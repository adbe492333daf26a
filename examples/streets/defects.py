"""Files as they go wrong in practice, planted so that tests and the report's quarantine table find something."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from examples.streets.canvas import IntArray
from examples.streets.cityscapes import CityJob, city_jobs
from examples.streets.files import put, to_png
from examples.streets.rng import white_noise
from examples.streets.spec import DemoSpec

__all__ = ["plant_defects"]

_COARSE = ("labelIds.png", "instanceIds.png", "color.png", "polygons.json")


def plant_defects(spec: DemoSpec, root: Path) -> list[str]:
    """Add or damage files of `train_extra` (and one mask of `train`); returns one line for each, relative to `root`."""
    extra = [job for job in city_jobs(spec) if job.split == "train_extra"]
    if len(extra) < 3:
        return []
    first, second, third = extra[0], extra[1], extra[2]
    width, height = spec.size
    return [
        _black(root, CityJob("train_extra", "troisdorf", 73, 0), width, height),
        _truncated(root, first),
        _unpaired(root, second),
        _ids_out_of_range(root, third),
        _copy(root, extra[-1], near=False),
        _copy(root, extra[-2], near=True),
    ]


def _image(root: Path, job: CityJob) -> Path:
    return root / "leftImg8bit" / job.split / job.city / f"{job.stem}_leftImg8bit.png"


def _label(root: Path, job: CityJob, suffix: str) -> Path:
    return root / "gtCoarse" / job.split / job.city / f"{job.stem}_gtCoarse_{suffix}"


def _added(job: CityJob, sequence: int) -> CityJob:
    return CityJob(job.split, job.city, sequence, 0)


def _say(root: Path, reason: str, path: Path) -> str:
    return f"{reason}: {path.relative_to(root).as_posix()}"


def _black(root: Path, job: CityJob, width: int, height: int) -> str:
    """The release's one corrupt picture: all black, one channel, with a constant coarse label."""
    put(_image(root, job), to_png(np.zeros((height, width), dtype=np.uint8)))
    flat = np.zeros((height, width), dtype=np.uint8)
    put(_label(root, job, "labelIds.png"), to_png(flat))
    put(_label(root, job, "instanceIds.png"), to_png(flat.astype(np.uint16)))
    put(_label(root, job, "color.png"), to_png(np.dstack([flat, flat, flat, flat + 255]).astype(np.uint8)))
    put(_label(root, job, "polygons.json"), f'{{"imgHeight": {height}, "imgWidth": {width}, "objects": []}}'.encode())
    return _say(root, "black one-channel image", _image(root, job))


def _duplicate_files(root: Path, job: CityJob, copy: CityJob) -> None:
    put(_image(root, copy), _image(root, job).read_bytes())
    for suffix in _COARSE:
        put(_label(root, copy, suffix), _label(root, job, suffix).read_bytes())


def _truncated(root: Path, job: CityJob) -> str:
    broken = _added(job, 900)
    _duplicate_files(root, job, broken)
    data = _image(root, job).read_bytes()
    put(_image(root, broken), data[: len(data) * 3 // 5])
    return _say(root, "truncated PNG", _image(root, broken))


def _unpaired(root: Path, job: CityJob) -> str:
    alone = _added(job, 901)
    for suffix in _COARSE:
        put(_label(root, alone, suffix), _label(root, job, suffix).read_bytes())
    return _say(root, "label without image", _label(root, alone, "labelIds.png"))


def _read_rgb(path: Path) -> IntArray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR))[:, :, ::-1].astype(np.int64)


def _ids_out_of_range(root: Path, job: CityJob) -> str:
    broken = _added(job, 902)
    _duplicate_files(root, job, broken)
    mirrored = _read_rgb(_image(root, job))[:, ::-1].astype(np.uint8)
    put(_image(root, broken), to_png(np.ascontiguousarray(mirrored)))
    mask = np.asarray(cv2.imread(str(_label(root, job, "labelIds.png")), cv2.IMREAD_UNCHANGED)).copy()
    mask = mask[:, ::-1].copy()
    mask[: mask.shape[0] // 8, : mask.shape[1] // 8] = 77
    put(_label(root, broken, "labelIds.png"), to_png(mask))
    return _say(root, "label ids out of range", _label(root, broken, "labelIds.png"))


def _copy(root: Path, job: CityJob, *, near: bool) -> str:
    twin = _added(job, 903 if near else 904)
    _duplicate_files(root, job, twin)
    if near:
        pixels = _read_rgb(_image(root, job))
        noise = (white_noise((pixels.shape[0], pixels.shape[1]), 5) - 128) >> 6
        put(_image(root, twin), to_png(np.clip(pixels + noise[..., None] + 2, 0, 255).astype(np.uint8)))
    return _say(root, "near-duplicate image" if near else "exact duplicate image", _image(root, twin))
