"""auto-infer: label coarse and unlabelled images that the current teacher has not labelled before."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.teachers.sources import lineage_of
from hmsa_core.io.errors import InputError
from hmsa_core.labels import ConfidenceCode, StoreStatistics
from hmsa_core.labels.store.codes import EDGE_VALUES
from hmsa_core.labels.store.writer import publish_store
from pipeline.jobs.support import infer_store, labelling_teacher, left_out, role_index, warn, write_metrics
from pipeline.report import plots
from pipeline.workspace.workspace import Workspace

STAGE = "auto-infer"
# Bytes per pixel of label and code as PNG: 0.6 on CamVid and the demo's scenes. Three copies exist: the progress in
# work/, the output, and the copy in DVC's cache (docs/reliability.md).
_BYTES_PER_PIXEL = 3 * 0.7


def disk_estimate(ws: Workspace) -> int:
    """Bytes of the store as progress, as output and in DVC's cache."""
    return int(_BYTES_PER_PIXEL * Index.load(role_index(ws, "unlabelled")).pixels())


def run(ws: Workspace) -> None:
    """Label new images and publish labels/raw."""
    index = role_index(ws, "unlabelled")
    samples = Index.load(index).samples
    names = tuple(s.name for s in samples)
    if not names:
        raise InputError(
            "there is no image to label: no split has the role `unlabelled`",
            hint="see data.roles.unlabelled_splits in params.yaml",
        )
    taught = self_taught(ws, samples)
    store = infer_store(ws, STAGE, "auto-infer", ws.params.auto_infer, labelling_teacher(ws), index, names)
    publish_store(store, ws.path("labels/raw"))
    missing = left_out(store)
    if missing:
        name, reason = min(missing.items())
        warn(
            STAGE,
            f"{len(missing)} of {len(names)} images could not be labelled, first {name}: {reason}; once they are "
            f"repaired, `dvc repro --force --single-item {STAGE}` labels them",
        )
    if taught:
        warn(STAGE, self_taught_warning(taught, len(names)))
    _report(ws, StoreStatistics.open(ws.path("labels/raw")), len(missing), taught)


def self_taught(ws: Workspace, samples: Iterable[Sample]) -> int:
    """Number of images that the teacher has learned from by labels of an earlier teacher."""
    images = lineage_of(labelling_teacher(ws)).images
    return sum(s.image_sha256 in images and images[s.image_sha256].source == "pseudo" for s in samples)


def self_taught_warning(taught: int, images: int) -> str:
    """Warning about `taught` images that the teacher has learned from by labels of an earlier teacher."""
    return (
        f"the teacher has learned from {taught} of these {images} images by labels of an earlier teacher: what was "
        "wrong then may come back surer, and thresholds are measured on images that it never saw (docs/thresholds.md)"
    )


def _report(ws: Workspace, statistics: StoreStatistics, missing: int, taught: int) -> None:
    totals = statistics.totals()
    every = int(totals.sum())
    kept = np.cumsum(totals[:, ::-1], axis=1)[:, ::-1]  # pixels with at least each code
    at = {t: int(kept[:, ConfidenceCode().code_for(t)].sum()) / max(1, every) for t in (0.5, 0.9, 0.98)}
    write_metrics(
        ws,
        STAGE,
        {
            "images": len(statistics),
            "left_out": missing,
            "self_taught": taught,
            "pixels": int(statistics.pixels.sum()),
            "kept_share": {f"{t:g}": share for t, share in at.items()},
            "class_share": {
                name: int(row.sum()) / max(1, every)
                for name, row in zip(statistics.classes.classes, totals, strict=True)
            },
        },
    )
    shares = (kept.sum(axis=0) / max(1, every)).tolist()
    plots.lines(
        ws.path(f"plots/{STAGE}-confidence.png"),
        {"all classes": (EDGE_VALUES.tolist(), shares)},
        title="Auto-labels: pixels with at least this confidence",
        x="threshold",
        y="share of pixels",
        limits=(0.0, 1.02),
    )
