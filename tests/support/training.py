"""A tiny data set on disk and specs that train on it in about a second."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hmsa_core.config import TrainConfig
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.sampling import Centroids, find_centroids
from hmsa_core.io.atomic import sha256_file, write_json
from hmsa_core.io.process import StopRequest
from hmsa_core.labels.finalise import STATISTICS
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.store.shards import ShardWriter, plan_shards
from hmsa_core.labels.store.writer import write_manifest
from hmsa_core.runtime.progress import read_log
from hmsa_core.runtime.ranks import JobContext, Ranks
from hmsa_core.spec import FineData, PseudoData, Selection, TrainSpec, ValidationData
from hmsa_core.taxonomy import ClassTable
from hmsa_core.training import run as training

CLASSES = ("road", "building", "car", "sky")
# The record of a checkpoint that nobody builds a model of.
NO_MODEL = {
    "kind": "single",
    "trunk": "hrnet_micro",
    "num_classes": 2,
    "options": {},
    "class_table": None,
    "lineage": {},
}


def class_table(names: tuple[str, ...] = CLASSES) -> ClassTable:
    n = len(names)
    lut, valid = np.full(256, 255, np.uint8), np.zeros(256, bool)
    lut[:n] = np.arange(n)
    valid[:n] = valid[255] = True
    colours = tuple((40 * i, 255 - 40 * i, 128) for i in range(n))
    return ClassTable("toy", names, colours, ("other",) * n, lut, valid, tuple(range(n)))


def class_file(root: Path, names: Iterable[str], **more: object) -> Path:
    """Write the class file of a data set of one's own."""
    rows = [{"id": i, "name": name, "colour": [90 * i % 256, 5, 7]} for i, name in enumerate(names)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"classes": rows, "ignore_id": 255, **more}))
    return root / "classes.json"


def sample(name: str, **values: Any) -> Sample:
    """A row of an index."""
    base = Sample(name, f"{name}.png", "", "", "fine", "train", "learn", "", "", -1, name, 8, 8, "", "", "", "0" * 16)
    return replace(base, **values)


def picture(seed: int, classes: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of classes with a colour each plus noise; the border of the label is ignored."""
    rng = np.random.default_rng(seed)
    height, width = size
    label = np.full(size, rng.integers(classes), np.uint8)
    for _ in range(6):
        y, x = rng.integers(height - 8), rng.integers(width - 8)
        label[y : y + rng.integers(8, height), x : x + rng.integers(8, width)] = rng.integers(classes)
    image = np.stack([60 * label, 255 - 60 * label, 20 + 30 * label], -1).astype(np.int16)
    image = np.clip(image + rng.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)
    label[:2] = 255
    return image, label


def write_data(
    folder: Path,
    *,
    images: int = 8,
    size: tuple[int, int] = (64, 96),
    names: tuple[str, ...] = CLASSES,
    role: str = "learn",
    prefix: str = "toy",
    first_seed: int = 0,
) -> Path:
    """Write images, labels, `<prefix>.parquet` and `<prefix>-centroids.parquet`; returns the index's path."""
    table = class_table(names)
    samples, parts = [], []
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    for i in range(images):
        image, label = picture(first_seed + i, len(names), size)
        name = f"{prefix}_{i:03d}"
        paths = {"image": f"{prefix}/{name}.png", "label": f"{prefix}/{name}_label.png"}
        cv2.imwrite(str(folder / paths["image"]), image[..., ::-1])
        cv2.imwrite(str(folder / paths["label"]), label)
        digests = {f"{what}_sha256": sha256_file(folder / path) for what, path in paths.items()}
        row = {"role": role, "city": "toytown", "sequence": f"{prefix}_0", "frame": i, "block": "0"}
        row |= {"height": size[0], "width": size[1], "phash": f"{i:016x}"}
        samples.append(sample(name, **paths, **digests, **row))
        parts.append((name, find_centroids(label, len(names), 32)))
    Index.write(folder / f"{prefix}.parquet", samples, table, "target")
    Centroids.collect(parts).write(folder / f"{prefix}-centroids.parquet")
    return folder / f"{prefix}.parquet"


def write_store(
    data: Path, store: Path, *, index: str = "extra", teacher: str = "unknown", source: str = "teacher", human: int = 0
) -> Path:
    """A thresholded label store of an index's images: their labels with a third of the pixels withheld.

    Its statistics say that `human` of 100 pixels were labelled by people, whatever `source` says.
    """
    found = Index.load(data / f"{index}.parquet")
    plans = plan_shards([], [(s.name, s.image_sha256) for s in found.samples], 4, "0" * 64)
    by_name, lineage = found.by_name(), {"teacher": teacher}
    for plan in plans:
        writer = ShardWriter(store, plan, classes=found.classes, kind="thresholded")
        for name in plan.names:
            label = cv2.imread(str(data / by_name[name].label), cv2.IMREAD_UNCHANGED)
            label[:, ::3] = 255
            code = np.full_like(label, 250)
            writer.add_coded(name, label, code, source=np.where(label != 255, SOURCES[source], 0).astype(np.uint8))
        writer.close()
    write_json(store / STATISTICS, {"classes": [{"from_human": human, "both": 0, "final": 100}]})
    write_manifest(store, plans, lineage, classes=found.classes, extras=[STATISTICS])
    return store


def config(**changes: Any) -> TrainConfig:
    """Settings of a run of 12 steps (3 epochs of 8 crops, batch 2), changed by dotted keys with `__`."""
    values: dict[str, Any] = {
        "model": {"kind": "hierarchical", "trunk": "hrnet_micro", "dropout": 0.1},
        "optimiser": {"lr": 0.05, "lr_scaling": "none", "poly_unit": "step", "poly_power": 1.0},
        "sampling": {"tile": 32},
        "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "channels_last": False},
        "crop": [64, 96],
        "epochs": 3,
        "global_batch": 2,
        "batch_per_rank": 1,
        "checkpoint_every": 4,
        "ema_decay": 0.9,
        "seed": 5,
    }
    for key, value in changes.items():
        at = values
        *path, last = key.split("__")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return TrainConfig.model_validate(values)


def train_spec(data: Path, work: Path, *, index: str = "toy", **changes: Any) -> TrainSpec:
    """Spec of a run on the data that `write_data` made in `data`."""
    top = {k: changes.pop(k) for k in ("init_from", "teacher", "validation", "pseudo", "stage") if k in changes}
    return TrainSpec(
        work=work,
        roots={"target": data},
        stage=top.pop("stage", "teacher-train"),
        config=config(**changes),
        fine=FineData(
            selection=Selection(index=data / f"{index}.parquet", roles=("learn",)),
            centroids=data / f"{index}-centroids.parquet",
        ),
        lineage={"asked_by": "a test"},
        **top,
    )


def pseudo_data(data: Path, store: Path, *, index: str = "extra", **more: Any) -> tuple[PseudoData]:
    files = {"centroids": data / f"{index}-centroids.parquet", "index": data / f"{index}.parquet"}
    return (PseudoData(store=store, **files, **more),)


def write_student_data(folder: Path) -> Path:
    """Fine labels, images with labels of a teacher in `store`, and others to validate on."""
    write_data(folder)
    write_data(folder, prefix="extra", images=6, first_seed=100)
    write_data(folder, prefix="held", images=3, first_seed=200, role="calibrate")
    write_store(folder, folder / "store", human=1)
    return folder


def student_spec(data: Path, work: Path, **changes: Any) -> TrainSpec:
    """Spec of a student on the data that `write_student_data` made: its last epoch has fine labels only."""
    held = ValidationData(selection=Selection(index=data / "held.parquet", roles=("calibrate",)), every_epochs=2)
    changes = {"pseudo": pseudo_data(data, data / "store"), "pseudo__fine_only_epochs": 1, **changes}
    return train_spec(data, work, validation=held, **changes)


def assert_same_run(work: Path, other: Path, last_step: int) -> None:
    """Checkpoint, last state and what the log says of the training are equal to the bit."""
    for part in ("model", f"state/step-{last_step:08d}"):
        assert folder_bytes(work / part) == folder_bytes(other / part)
    assert log_of(work) == log_of(other)


def context(spec: TrainSpec, stop: StopRequest | None = None, ranks: Ranks | None = None) -> JobContext:
    """Context of a job that runs alone in this process."""
    torch.set_num_threads(1)
    ranks = ranks or Ranks(0, 1, torch.device("cpu"))
    return JobContext.of(spec.work, ranks, spec.config.runtime, stop or StopRequest())


def run(spec: TrainSpec, ranks: Ranks | None = None) -> Path:
    """Train to the end in this process; returns the checkpoint folder."""
    training.run(spec, context(spec, ranks=ranks))
    return spec.work / "model"


def events(spec: TrainSpec, name: str) -> list[dict[str, Any]]:
    """Lines of the log about one kind of event."""
    return [line for line in read_log(spec.work / "log.jsonl") if line["event"] == name]


class Plan:
    """As many crops as asked for, of one epoch, for trainers that are given their batches."""

    epochs = 1

    def __init__(self, crops: int) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return self.crops

    def locate(self, position: int) -> tuple[int, int]:
        return 0, position


def log_of(work: Path) -> list[dict[str, Any]]:
    """Lines about what was trained, without clocks and memory."""
    lines = []
    for line in read_log(work / "log.jsonl"):
        if line["event"] in ("train", "epoch", "validation"):
            lines.append({k: v for k, v in line.items() if k not in _MEASURED})
    return lines


_MEASURED = ("time", "images_per_s", "data_wait", "memory_mb")


def folder_bytes(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """All files below a folder, but for those with one of these suffixes."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in without)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
