"""Explanations of the names of figures on the results page, which shows them as tooltips."""

from __future__ import annotations

_MODELS = {
    "teacher": "model that labels the unlabelled images",
    "student": "model that learned from fine labels and from the teacher's labels",
    "control": "same training as the student's, with fine labels only: the difference is what the auto-labels bring",
    "incumbent": "teacher that was promoted; the student would replace it",
    "champion": "pinned reference model, which a new teacher must not fall below",
}
_FIGURES = {
    "mIoU": "mean over the classes of IoU, in percent",
    "mean IoU": "mean over the classes of IoU, in percent",
    "IoU": "pixels that label and truth share, over the pixels that either gives to the class, in percent",
    "interval": "95 of 100 such ranges hold the true value; resampled by blocks of images",
    "difference": "mean IoU of the first model minus that of the second, on the same images",
    "blocks": "groups of images that look alike, such as a drive; the units of resampling",
    "excludes zero": "whether the whole interval lies on one side of zero",
    "boundary IoU": "IoU of the inner boundaries of each class (Cheng et al. 2021)",
    "band": "IoU of the pixels close to a boundary between classes",
    "calibration error": "mean gap between confidence and share of right pixels (ECE); 0 is best",
    "category": "classes put together, such as vehicles: confusions inside it count as right",
}
_THRESHOLDS = {
    "status": "how well the class's threshold is supported: measured, estimate, pooled, withheld or given",
    "threshold": "lowest confidence at which a pixel of the class is kept",
    "promise": "threshold of the policy that guarantees precision",
    "teach": "threshold of the policy that serves a student",
    "precision": "share of kept pixels whose label is right, on calibration images, in percent",
    "lower bound": "the precision is at least this, with the confidence that calibrate.confidence sets",
    "report set": "precision on the report images, which chose nothing",
    "marginal": "precision of the least sure pixels that are kept",
    "coverage": "share of the pixels of the class that is kept, in percent",
    "change": "coverage against last night, in points",
    "on void": "share of the kept pixels where people labelled nothing",
    "right": "share of kept pixels whose label is right, on report images",
    "kept": "share of pixels that the thresholds keep",
    "teacher gave": "pixels to which the teacher gave this class",
    "passed": "of them, those above the threshold",
    "from teacher": "pixels of the training labels that only the teacher gave",
    "from human": "pixels of the training labels that only people gave",
    "both": "pixels to which people and the teacher gave this class",
    "final": "pixels of the class in the training labels",
    "fine labels": "share of the class in the fine labels that are learned from",
    "polygons": "share of the class in coarse labels and corrections by people",
    "teacher's labels": "share of the class in the pixels that only the teacher labelled",
    "share of fine labels": "share of the class in the fine labels that are learned from",
    "of its pixels": "share of the class's true pixels that is kept and right, on calibration images",
    "points missing": "mean IoU that is lacking because the class is not perfect",
    "worst precision": "precision of the class that is labelled worst",
    "class-mean coverage": "mean over the classes of the share of pixels that is kept",
    "expected": "precision that the shift of confidences lets expect in this city",
    "usual": "precision on the calibration images",
}
_REST = {
    "roles": "what images may be used for: learn, calibrate, report, unlabelled, guard (nothing)",
    "splits": "parts of the data set as its folders name them",
    "refused": "images that could not be used, listed below",
    "where": "city, drive or camera whose labels the calibration images may not represent",
    "% of the class": "share of the class's pixels",
    "% of all pixels": "share of all judged pixels",
    "peak MiB": "most memory that one process held",
    "crops a second": "speed of the training",
    "waiting": "share of the time in which the training waited for images",
    "... at most": "of the rank that waited most",
    "peak MB": "most GPU memory of one process",
    "weights": "SHA-256 of the weights, its first 16 digits",
    "parents": "weights that the training started from or learned from",
    "kind": "fusion over scales: hierarchical, single, ...",
    "trunk": "network that turns an image into feature maps",
    "images learned from": "number of images in the lineage",
    "digest": "SHA-256, its first 16 digits",
    "teacher's weights": "weights that made the labels",
    "inference": "scales, flip and precision of the labels",
    "policy": "digest of the thresholds that kept the labels",
    "tonight": "what this night added",
    "in all": "after this night",
    "GPU-h": "hours of one GPU",
    "CPU-process-h": "hours of one process that computes",
    "answers to a certificate": "answers of a person until the class is certified, as expected",
    "50 confirm": "kept pixels that 50 more answers are expected to certify",
    "50 bring": "pixels that 50 more answers are expected to add",
}
MEANINGS = _MODELS | _FIGURES | _THRESHOLDS | _REST


def meaning(name: str) -> str:
    """Explanation of a name, else of the longest known name that it begins with ("precision %": precision), else ""."""
    known = [key for key in MEANINGS if name == key or name.startswith((f"{key} ", f"{key},"))]
    return MEANINGS[max(known, key=len)] if known else ""
