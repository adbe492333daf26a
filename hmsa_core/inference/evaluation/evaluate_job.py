"""Score a checkpoint on labelled images under several settings; per-image confusions for any statistic.

Everything is counted per image, so that any statistic can follow. Result of the job: `work/<setting>.npz` {names,
blocks, cities, confusions int64 (N, C, C) rows = truth, classes; with `details` also band_confusions, boundary,
weights, reliability_*} and, last, `work/summary.json`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.transforms import resize_label, to_long_edge
from hmsa_core.inference.folder.infer_job import read_ahead
from hmsa_core.inference.network.predictor import Tiler, load_predictor
from hmsa_core.inference.teachers.teacher import classes_of
from hmsa_core.io.atomic import write_bytes, write_json
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.metrics import BoundaryIoU, Reliability, boundary_band, confusion_counts, finite, iou_of, mean_iou_of
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import EvaluateSpec, EvaluationSetting
from hmsa_core.taxonomy import ClassTable


def run(spec: EvaluateSpec, context: JobContext) -> dict[str, Any]:
    """Score the selected images; all ranks call it, each scores every world-th image.

    Returns:
        The content of `work/summary.json`.

    Raises:
        InputError: no selected image has a label. ConfigError: the checkpoint has other classes, or cannot be
            run in a setting's mode. IntegrityError: a file is not the one that was indexed.
    """
    index = Index.load(spec.selection.index)
    selected = index.select(**spec.selection.model_dump(exclude={"index"}))
    samples = [sample for sample in selected if sample.label]
    if not samples:
        raise InputError(f"{spec.selection.index}: none of the {len(selected)} selected images has a label")
    predictor = load_predictor(spec.checkpoint, context)
    classes = classes_of(predictor, index.classes, str(spec.checkpoint))
    if classes.classes != index.classes.classes:
        raise ConfigError(
            f"{spec.checkpoint} labels {classes.name}, the index holds labels of {index.classes.name}",
            hint="judge a model on labels of its own classes",
        )
    scorer = Scorer(Tiler(predictor), spec.settings, classes.num_classes, details=spec.details)
    mine = samples[context.rank :: context.world]
    root = spec.roots[index.root]
    what = "evaluate" if context.world == 1 else f"evaluate (rank 0 of {context.world})"
    with context.progress(len(mine), what=what) as progress:
        for item in read_ahead(mine, lambda sample: _read(sample, root, index.classes)):
            context.check_stop()
            scorer.add(item)
            progress.update()
    parts = context.ranks.gather(scorer.scores)
    if not context.is_main:
        return {}
    figures: dict[str, Any] = {}
    for setting in spec.settings:
        merged = merge_scores([part[setting.name] for part in parts], [s.name for s in samples])
        figures[setting.name] = summarise(merged, setting, classes)
        write_bytes(spec.work / f"{setting.name}.npz", npz_bytes(merged, classes))
    summary = {
        "checkpoint": predictor.meta["weights_sha256"],
        "precision": predictor.precision,
        "images": len(samples),
        "classes": list(classes.classes),
        "settings": figures,
        "lineage": spec.lineage,
    }
    write_json(spec.work / "summary.json", summary)
    return summary


def _read(sample: Sample, root: Path, classes: ClassTable) -> Labelled:
    return Labelled(
        sample.name,
        read_image(root / sample.image, sha256=sample.image_sha256),
        read_label(root / sample.label, classes, sha256=sample.label_sha256),
        sample.block,
        sample.city,
    )


BAND_PX = 8.0  # pixels at 1024 lines, scaled with the height: half the width of the band at boundaries
BINS = 20  # of the reliability diagram
UInt8 = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True)
class Labelled:
    """One image with its truth and what statistics group it by."""

    name: str
    image: UInt8  # HxWx3 RGB
    label: UInt8  # HxW trainIds, 255 = ignore
    block: str = ""
    city: str = ""


@dataclass
class SettingScores:
    """Counts of one setting; every list has one entry per image."""

    names: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    cities: list[str] = field(default_factory=list)
    confusions: list[NDArray[np.int64]] = field(default_factory=list)  # C x C, rows = truth
    band: list[NDArray[np.int64]] = field(default_factory=list)  # C x C, near boundaries of the truth
    boundary: list[NDArray[np.int64]] = field(default_factory=list)  # 2 x C, intersection and union
    weights: list[NDArray[np.float64]] = field(default_factory=list)  # S x C x 2, sums away from and in the band
    reliability: Reliability = field(default_factory=lambda: Reliability(BINS))


class Scorer:
    """Scores images one by one under all settings; what settings have in common is computed once.

    Args:
        tiler: labels images.
        settings: scales, flip, mode, sizes.
        num_classes: C.
        details: also boundaries, reliability and weights.
    """

    def __init__(
        self, tiler: Tiler, settings: Sequence[EvaluationSetting], num_classes: int, *, details: bool = False
    ) -> None:
        for setting in settings:
            tiler.predictor.check_kind(setting.mode)
        self._tiler, self._num_classes, self._details = tiler, num_classes, details
        # A scale's attention is computed unless it is a setting's highest. Settings with higher scales go
        # first, those without attention last: then no scale is run a second time to get it.
        self._order = sorted(settings, key=lambda s: (s.long_edge or 0, s.mode != "model", -max(s.scales)))
        self.scores = {setting.name: SettingScores() for setting in settings}

    def add(self, item: Labelled) -> None:
        """Label and score one image."""
        resized: dict[int, UInt8] = {}
        for setting in self._order:
            edge = setting.long_edge or max(item.image.shape[:2])
            if edge not in resized:
                resized[edge] = to_long_edge(item.image, edge)
            self._score(setting, resized[edge], item, self.scores[setting.name])

    def _score(self, setting: EvaluationSetting, image: UInt8, item: Labelled, out: SettingScores) -> None:
        size = (image.shape[0], image.shape[1])
        label = resize_label(item.label, size) if setting.score_at == "resized" else item.label
        pred, confidence = self._tiler.label(
            image, setting.scales, setting.flip, kind=setting.mode, size=(label.shape[0], label.shape[1])
        )
        classes = self._num_classes
        out.names.append(item.name)
        out.blocks.append(item.block)
        out.cities.append(item.city)
        out.confusions.append(confusion_counts(pred, label, classes)[:, :classes])
        if not self._details:
            return
        band = boundary_band(label, max(1.0, BAND_PX * label.shape[0] / 1024))
        inside = band & (label != 255)
        out.band.append(confusion_counts(pred[inside], label[inside], classes)[:, :classes])
        boundary = BoundaryIoU(classes).update(pred, label)
        out.boundary.append(np.stack([boundary.intersection, boundary.union]))
        out.reliability.update(pred, confidence, label)
        if setting.mode == "model" and self._tiler.predictor.kind in ("hierarchical", "explicit"):
            maps = self._tiler.weights(image, setting.scales, setting.flip)
            out.weights.append(_weight_sums(maps, label, band, classes))


def _weight_sums(
    maps: dict[float, NDArray[np.float32]], label: UInt8, band: NDArray[np.bool_], classes: int
) -> NDArray[np.float64]:
    """Sum of each scale's weight (scales ascending) over the pixels of a true class: S x C x (away, in band)."""
    place = label.astype(np.intp) * 2 + band
    sums = []
    for _, weight in sorted(maps.items()):
        fitted = weight if weight.shape == label.shape else np.asarray(cv2.resize(weight, label.shape[::-1]))
        sums.append(np.bincount(place.ravel(), weights=fitted.ravel(), minlength=512)[: 2 * classes])
    return np.stack(sums).astype(np.float64).reshape(len(maps), classes, 2)


def merge_scores(parts: Sequence[SettingScores], order: Sequence[str]) -> SettingScores:
    """Join the scores of several ranks, images in the given order."""
    joined = SettingScores()
    for part in parts:
        joined.reliability.merge(part.reliability)
    position = {name: i for i, name in enumerate(name for part in parts for name in part.names)}
    for what in ("names", "blocks", "cities", "confusions", "band", "boundary", "weights"):
        entries = [entry for part in parts for entry in getattr(part, what)]
        setattr(joined, what, [entries[position[name]] for name in order] if entries else [])
    return joined


def npz_bytes(scores: SettingScores, classes: ClassTable) -> bytes:
    """The setting's arrays as an .npz file: equal scores give equal bytes."""
    count = classes.num_classes
    arrays: dict[str, NDArray[Any]] = {
        "names": np.array(scores.names, dtype=str),
        "blocks": np.array(scores.blocks, dtype=str),
        "cities": np.array(scores.cities, dtype=str),
        "confusions": np.array(scores.confusions, np.int64).reshape(-1, count, count),
        "classes": np.array(classes.classes, dtype=str),
    }
    if scores.band:
        arrays["band_confusions"] = np.array(scores.band, np.int64)
        arrays["boundary"] = np.array(scores.boundary, np.int64)
        arrays |= {f"reliability_{k}": v for k, v in scores.reliability.diagram().items()}
    if scores.weights:
        arrays["weights"] = np.array(scores.weights)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # numpy's archives carry no clock
    return buffer.getvalue()


def summarise(scores: SettingScores, setting: EvaluationSetting, classes: ClassTable) -> dict[str, Any]:
    """Figures of one setting for `summary.json`; null where a class is in neither truth nor prediction."""
    counts = np.sum(scores.confusions, axis=0) if scores.confusions else np.zeros((classes.num_classes,) * 2, int)
    result: dict[str, Any] = {
        **setting.model_dump(mode="json", exclude={"name"}),
        "images": len(scores.names),
        **_iou_json(iou_of(counts), classes),
        "pixel_accuracy": finite(np.trace(counts) / counts.sum()) if counts.sum() else None,
    }
    if scores.band:
        result["band"] = _iou_json(iou_of(np.sum(scores.band, axis=0)), classes)
        both = np.sum(scores.boundary, axis=0)
        with np.errstate(invalid="ignore"):
            result["boundary"] = _iou_json(both[0] / both[1], classes)
        result["ece"] = finite(scores.reliability.ece())
    if scores.weights:
        result["weights"] = _weights_json(scores, setting, counts, classes)
    return result


def _iou_json(iou: NDArray[np.float64], classes: ClassTable) -> dict[str, Any]:
    by_class = {name: finite(value) for name, value in zip(classes.classes, iou, strict=True)}
    return {"mean_iou": finite(float(mean_iou_of(iou))), "iou": by_class}


def _weights_json(
    scores: SettingScores, setting: EvaluationSetting, counts: NDArray[np.int64], classes: ClassTable
) -> dict[str, Any]:
    """Mean weight of each scale per true class, in the boundary band and away from it."""
    sums = np.sum(scores.weights, axis=0)
    in_band = np.sum(scores.band, axis=0).sum(1)
    pixels = np.stack([counts.sum(1) - in_band, in_band], axis=-1)
    result: dict[str, Any] = {}
    for scale, values in zip(sorted(setting.scales), sums, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(pixels > 0, values / pixels, np.nan)
        result[f"{scale:g}"] = {
            place: {name: finite(means[c, i]) for c, name in enumerate(classes.classes)}
            for i, place in enumerate(("interior", "band"))
        }
    return result
