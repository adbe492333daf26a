"""The Cityscapes layout: leftImg8bit, gtFine, gtCoarse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.streets.annotate import NamedPolygon, cityscapes_polygons, draw_cityscapes, polygon_json
from examples.streets.coarse import coarse_polygons
from examples.streets.files import put, to_png
from examples.streets.kinds import cityscapes
from examples.streets.rng import Rng
from examples.streets.scene import city_picture
from examples.streets.spec import DemoSpec

__all__ = ["CityJob", "city_jobs", "write_city_picture"]

FIRST_FRAME = 19
FRAME_STEP = 10
# In these cities the release has few long recordings with many frame numbers.
LONG_CITIES = frozenset({"bochum", "hamburg", "hanover", "krefeld", "monchengladbach", "strasbourg", "frankfurt"})


@dataclass(frozen=True)
class CityJob:
    """One picture to write."""

    split: str
    city: str
    sequence: int
    frame: int

    @property
    def stem(self) -> str:
        """`<city>_<sequence>_<frame>`; 17 frames a second, so ten frames apart is 0.6 s."""
        number = (294 if self.city in LONG_CITIES else FIRST_FRAME) + FRAME_STEP * self.frame
        return f"{self.city}_{self.sequence:06d}_{number:06d}"


def city_jobs(spec: DemoSpec) -> list[CityJob]:
    """All pictures of the Cityscapes-like set."""
    return [
        CityJob(city.split, city.name, sequence, frame)
        for city in spec.cities
        for sequence in range(city.sequences)
        for frame in range(city.frames)
    ]


def write_city_picture(spec: DemoSpec, root: Path, job: CityJob) -> None:
    """Paint one picture and write its image and annotation files below `root`."""
    picture = city_picture(
        spec.seed, job.split, job.city, job.sequence, job.frame, spec.size, spec.supersample, spec.clutter
    )
    put(root / "leftImg8bit" / job.split / job.city / f"{job.stem}_leftImg8bit.png", to_png(picture.rgb))
    fine = cityscapes_polygons(picture.objects)
    labels, instances = draw_cityscapes(picture.size, fine)
    if job.split != "train_extra":
        _write_annotation(root, "gtFine", job, fine, labels, instances)
    else:  # for `research.ablate pays` alone: no stage reads this folder
        put(root / "ceiling" / f"{job.stem}.png", to_png(labels))
    if job.split in spec.coarse_splits:
        rng = Rng(spec.seed, "coarse", job.split, job.city, job.sequence, job.frame)
        coarse = coarse_polygons(labels, instances, rng)
        _write_annotation(root, "gtCoarse", job, coarse, *draw_cityscapes(picture.size, coarse))


def colour_table() -> npt.NDArray[np.uint8]:
    """(256, 4) RGBA of label ids."""
    table = np.zeros((256, 4), dtype=np.uint8)
    table[:, 3] = 255
    for entry in cityscapes().entries:
        if entry.id >= 0:
            table[entry.id, :3] = entry.colour
    return table


def _write_annotation(
    root: Path,
    kind: str,
    job: CityJob,
    polygons: list[NamedPolygon],
    labels: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.uint16],
) -> None:
    start = root / kind / job.split / job.city / f"{job.stem}_{kind}"
    files = {
        "labelIds.png": to_png(labels),
        "instanceIds.png": to_png(instances),
        "color.png": to_png(colour_table()[labels]),
        "polygons.json": json.dumps(polygon_json((labels.shape[0], labels.shape[1]), polygons)).encode(),
    }
    for suffix, data in files.items():
        put(start.with_name(f"{start.name}_{suffix}"), data)
