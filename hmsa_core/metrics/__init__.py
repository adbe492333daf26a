"""Measures of segmentations: IoU, categories, boundaries, calibration of confidences, intervals."""

from hmsa_core.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_iou, holm
from hmsa_core.metrics.boundary import boundary_band, boundary_counts
from hmsa_core.metrics.confusion import (
    ConfusionMatrix,
    by_category,
    by_city,
    confusion_counts,
    finite,
    iou_of,
    mean_iou_of,
)
from hmsa_core.metrics.reliability import Reliability

__all__ = [
    "ConfusionMatrix",
    "Interval",
    "Reliability",
    "bootstrap_difference",
    "bootstrap_iou",
    "boundary_band",
    "boundary_counts",
    "by_category",
    "by_city",
    "confusion_counts",
    "finite",
    "holm",
    "iou_of",
    "mean_iou_of",
]
