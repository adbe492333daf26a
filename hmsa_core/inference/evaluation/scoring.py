"""Score networks on labelled images: the one loop that reads, labels and counts, for an index and for folders alike.

Everything is counted per image, so that any statistic can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.index import Sample
from hmsa_core.data.transforms import resize_label, to_long_edge
from hmsa_core.inference.network.predictor import Predictor, Tiler, resized_maps
from hmsa_core.inference.teachers.teacher import Teacher
from hmsa_core.io.engine import read_ahead
from hmsa_core.io.errors import ConfigError
from hmsa_core.metrics import Reliability, boundary_band, boundary_counts, confusion_counts, finite, iou_of, mean_iou_of
from hmsa_core.metrics.confusion import ratio
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import EvaluationSetting
from hmsa_core.taxonomy import ClassTable

BAND_PX = 8.0  # pixels at 1024 lines, scaled with the height: half the width of the band at boundaries
BINS = 20  # of the reliability diagram
UInt8 = NDArray[np.uint8]
Size = tuple[int, int]
Maps = tuple[UInt8, NDArray[np.float32]]  # label and confidence


@dataclass(frozen=True)
class Labelled:
    """One decoded image with its truth."""

    sample: Sample  # its name, and what statistics group it by
    image: UInt8  # HxWx3 RGB
    label: UInt8  # HxW trainIds, 255 = ignore


@dataclass
class Scores:
    """Counts of one setting; every list has one entry per image."""

    samples: list[Sample] = field(default_factory=list)
    confusions: list[NDArray[np.int64]] = field(default_factory=list)  # C x C + 1, rows = truth, last: no label
    band: list[NDArray[np.int64]] = field(default_factory=list)  # the same near boundaries of the truth
    boundary: list[NDArray[np.int64]] = field(default_factory=list)  # 2 x C, intersection and union
    weights: list[NDArray[np.float64]] = field(default_factory=list)  # S x C x 2, sums away from and in the band
    reliability: Reliability = field(default_factory=lambda: Reliability(BINS))

    def of(self, what: str) -> list[str]:
        """A field of each image's sample: name, block or city."""
        return [getattr(sample, what) for sample in self.samples]


class _Network:
    """A checkpoint's network, which is run as each setting says."""

    def __init__(self, predictor: Predictor) -> None:
        self._tiler, self.num_classes = Tiler(predictor), predictor.num_classes
        self._learns_weights = predictor.kind in ("hierarchical", "explicit")

    def label(self, _name: str, image: UInt8, setting: EvaluationSetting, size: Size) -> Maps:
        return self._tiler.label(image, setting.passes, size)

    def weights(self, image: UInt8, setting: EvaluationSetting) -> dict[float, NDArray[np.float32]]:
        """Weight of each scale at each pixel; empty where the network has learned none."""
        if setting.mode != "model" or not self._learns_weights:
            return {}
        return self._tiler.weights(image, setting.passes)


class _Labels:
    """What a teacher labels with the scales and the flip that it was opened with."""

    def __init__(self, teacher: Teacher, settings: Sequence[EvaluationSetting]) -> None:
        if any(setting.mode != "model" for setting in settings):
            raise ConfigError(f"{teacher.sources[0]}: only checkpoints fuse scales in another mode than `model`")
        self._teacher, self.num_classes = teacher, teacher.classes.num_classes

    def label(self, name: str, image: UInt8, _setting: EvaluationSetting, size: Size) -> Maps:
        maps = self._teacher.label(name, image)
        return maps if maps[0].shape == size else resized_maps(maps, size)

    def weights(self, _image: UInt8, _setting: EvaluationSetting) -> dict[float, NDArray[np.float32]]:
        return {}


def score(
    network: Predictor | Teacher,
    settings: Sequence[EvaluationSetting],
    samples: Sequence[Sample],
    read: Callable[[Sample], Labelled],
    context: JobContext,
    *,
    details: bool = False,
) -> dict[str, Scores]:
    """Label and count the images of all ranks under each setting; all ranks call it, each scores every world-th image.

    Args:
        network: a checkpoint's; or a teacher, which was opened with its scales and flip.
        settings: how a checkpoint is run. What they have in common is computed once.
        samples: the images, in the order of the result; no name occurs twice.
        read: decodes an image and its label, in another thread. It may complete the sample that it returns.
        context: ranks, progress, stop request.
        details: also boundaries, reliability and weights.

    Returns:
        Scores by the setting's name.

    Raises:
        ConfigError: the network cannot be run in a setting's mode. InterruptedRunError: a stop was requested.
    """
    judged = _Labels(network, settings) if isinstance(network, Teacher) else _Network(network)
    # A scale's attention is computed unless it is a setting's highest. Settings with higher scales go first, those
    # without attention last: then no scale is run a second time to get it.
    order = sorted(settings, key=lambda s: (s.long_edge or 0, s.mode != "model", -max(s.scales)))
    scores = {setting.name: Scores() for setting in settings}
    mine = samples[context.ranks.rank :: context.ranks.world]
    what = "evaluate" if context.ranks.world == 1 else f"evaluate (rank 0 of {context.ranks.world})"
    with context.progress(len(mine), what=what) as progress:
        for item in read_ahead(mine, read):
            context.stop.check()
            resized: dict[int, UInt8] = {}
            for setting in order:
                edge = setting.long_edge or max(item.image.shape[:2])
                if edge not in resized:
                    resized[edge] = to_long_edge(item.image, edge)
                _add(scores[setting.name], item, resized[edge], setting, judged, details=details)
            progress.update()
    parts = context.ranks.gather(scores)
    return {setting.name: _merged([part[setting.name] for part in parts], samples) for setting in settings}


def _add(
    out: Scores, item: Labelled, image: UInt8, setting: EvaluationSetting, judged: _Network | _Labels, *, details: bool
) -> None:
    """Label one image, resized as the setting wants it, and count."""
    size = (image.shape[0], image.shape[1])
    label = resize_label(item.label, size) if setting.score_at == "resized" else item.label
    scored_at = (label.shape[0], label.shape[1])
    pred, confidence = judged.label(item.sample.name, image, setting, scored_at)
    classes = judged.num_classes
    out.samples.append(item.sample)
    out.confusions.append(confusion_counts(pred, label, classes))
    if not details:
        return
    band = boundary_band(label, max(1.0, BAND_PX * label.shape[0] / 1024))
    inside = band & (label != 255)
    out.band.append(confusion_counts(pred[inside], label[inside], classes))
    out.boundary.append(boundary_counts(pred, label, classes))
    out.reliability.update(pred, confidence, label)
    if maps := judged.weights(image, setting):
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


def _merged(parts: Sequence[Scores], order: Sequence[Sample]) -> Scores:
    """Join the scores of several ranks, images in the given order."""
    joined = Scores()
    for part in parts:
        joined.reliability.merge(part.reliability)
    position = {sample.name: i for i, sample in enumerate(sample for part in parts for sample in part.samples)}
    for what in ("samples", "confusions", "band", "boundary", "weights"):
        entries = [entry for part in parts for entry in getattr(part, what)]
        setattr(joined, what, [entries[position[sample.name]] for sample in order] if entries else [])
    return joined


def summarise(scores: Scores, setting: EvaluationSetting, classes: ClassTable) -> dict[str, Any]:
    """Figures of one setting for `summary.json`; null where a class is in neither truth nor prediction."""
    counts = np.sum(scores.confusions, axis=0) if scores.confusions else np.zeros((classes.num_classes,) * 2, int)
    result: dict[str, Any] = {
        **setting.model_dump(mode="json", exclude={"name"}),
        "images": len(scores.samples),
        **_iou_json(iou_of(counts), classes),
        "pixel_accuracy": finite(np.trace(counts) / counts.sum()) if counts.sum() else None,
    }
    if scores.band:
        result["band"] = _iou_json(iou_of(np.sum(scores.band, axis=0)), classes)
        both = np.sum(scores.boundary, axis=0)
        result["boundary"] = _iou_json(ratio(both[0], both[1]), classes)
        result["ece"] = finite(scores.reliability.ece())
    if scores.weights:
        result["weights"] = _weights_json(scores, setting, counts, classes)
    return result


def _iou_json(iou: NDArray[np.float64], classes: ClassTable) -> dict[str, Any]:
    by_class = {name: finite(value) for name, value in zip(classes.classes, iou, strict=True)}
    return {"mean_iou": finite(float(mean_iou_of(iou))), "iou": by_class}


def _weights_json(
    scores: Scores, setting: EvaluationSetting, counts: NDArray[np.int64], classes: ClassTable
) -> dict[str, Any]:
    """Mean weight of each scale per true class, in the boundary band and away from it."""
    sums = np.sum(scores.weights, axis=0)
    in_band = np.sum(scores.band, axis=0).sum(1)
    pixels = np.stack([counts.sum(1) - in_band, in_band], axis=-1)
    result: dict[str, Any] = {}
    for scale, values in zip(sorted(setting.scales), sums, strict=True):
        means = ratio(values, pixels)
        result[f"{scale:g}"] = {
            place: {name: finite(means[c, i]) for c, name in enumerate(classes.classes)}
            for i, place in enumerate(("interior", "band"))
        }
    return result
