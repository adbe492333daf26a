"""Scores of the running model at ends of epochs: single scale, whole images, for the log alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.transforms import normalise
from hmsa_core.inference.evaluate_scores import to_long_edge
from hmsa_core.io.errors import ConfigError
from hmsa_core.metrics import confusion_counts, iou_of, mean_iou_of
from hmsa_core.runtime.context import JobContext
from hmsa_core.spec import TrainSpec, ValidationData
from hmsa_core.training.rundata import root_of, select
from hmsa_core.training.trainer import Trainer

__all__ = ["Validation"]


class Validation:
    """Images to score on; they teach nothing and nothing is chosen by them.

    Raises:
        ConfigError: the selection is empty, or one of its images is learned from as well.
    """

    def __init__(self, wanted: ValidationData, spec: TrainSpec, context: JobContext, learned: set[str]) -> None:
        self._context, self._config, self._every = context, spec.config, wanted.every_epochs
        chosen = wanted.selection
        index = Index.load(chosen.index)
        self._samples = [s for s in select(index, chosen) if s.label]
        self._root, self._classes = root_of(spec, index.root), index.classes
        if not self._samples:
            raise ConfigError(f"validation: no image of {chosen.index} has a fine label and passes the selection")
        both = [s.name for s in self._samples if s.image_sha256 in learned]
        if both:
            raise ConfigError(f"validation: {len(both)} images are learned from as well, first {both[0]}")

    def is_due(self, ended: int, epochs: int) -> bool:
        """Whether to score after so many epochs; always after the last."""
        return ended % self._every == 0 or ended >= epochs

    def run(self, trainer: Trainer) -> dict[str, Any] | None:
        """Mean IoU and IoU by class; None when some rank was asked to stop meanwhile. All ranks call it."""
        ranks, classes = self._context.ranks, self._classes
        counts = np.zeros((classes.num_classes, classes.num_classes + 1), np.int64)
        with trainer.averaged():
            for first in range(0, len(self._samples), ranks.world):
                if ranks.any(self._context.stop.is_set()):
                    return None
                if first + ranks.rank < len(self._samples):
                    counts += self._score(trainer, self._samples[first + ranks.rank])
        total = ranks.sum_(torch.from_numpy(counts)).numpy()
        iou = iou_of(total)
        return {
            "mean_iou": float(mean_iou_of(iou)),
            "images": len(self._samples),
            "iou": dict(zip(classes.classes, map(float, iou), strict=True)),
        }

    def _score(self, trainer: Trainer, sample: Sample) -> np.ndarray[Any, np.dtype[np.int64]]:
        image = read_image(self._root / sample.image, sha256=sample.image_sha256)
        label = read_label(self._root / sample.label, self._classes, sha256=sample.label_sha256)
        if self._config.long_edge is not None:
            image = to_long_edge(image, self._config.long_edge)
        logits = trainer.predict(normalise(image)[None])
        if logits.shape[2:] != label.shape:
            logits = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=False)
        pred = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()
        return confusion_counts(pred, label, self._classes.num_classes)
