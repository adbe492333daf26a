"""Answers teach alike regions: a light head, fitted to the answers, corrects regions that nobody was asked about.

A region is described by the means of a frozen trunk's maps, its label, confidence, size and place. The head is a
multinomial logistic regression with shrinkage. Answers about images that took no part in a fit decide whether it may
correct anything: among changes above a threshold, more must be right than wrong, by the lower end of an interval.
Its corrections stand in the review file as "alike": answers of people win over them, and each fit replaces them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from hmsa_core.data.decode import read_image
from hmsa_core.labels.review import UNTOUCHED, Mark, Patch, ReviewFile, labels_id, reviewed
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.taxonomy import IGNORE
from pipeline.review.price import weighted_share
from pipeline.review.questions import MIXED, UNSURE, Questions, regions_of, review_of, said_of
from pipeline.review.spot_check import SpotFile
from pipeline.review.view import StoreView

if TYPE_CHECKING:
    from hmsa_core.inference.network.region_features import RegionFeatures

Float64 = NDArray[np.float64]
Ints = NDArray[np.intp]
_RUN = 10  # images that are neighbours by name are held back together
_FOLDS = 5
_SHRINKAGE = (1.0, 3.0, 10.0, 30.0)  # of squared weights, added to the log loss of all answers
_THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # probabilities of the new class
_GIVEN_HIGHER = 0.5  # below it, a threshold is tested where the one above has passed: that costs no confidence
_CONFIDENCE = 0.99  # of each threshold's interval: 95 % for all together
_LARGEST_WEIGHT = 4.0  # of an answer in the fit, in means: a rare draw does not rule it
_NOT_OF_TRUNK = 5  # first columns of a description: see `describe`
_RARITY = 0.25  # power: an error costs a class of few pixels more of its IoU than it brings one of many
_COMPONENTS = 128  # of the trunk's columns


class Answers(NamedTuple):
    """Answered regions: description (n, D), label, answered class, weight (inverse probability), run of images."""

    described: Float64
    label: Ints
    said: Ints
    weight: Float64
    run: Ints


class Judgement(NamedTuple):
    """What held-back answers say: threshold (None = nothing may change), shrinkage, expected gain, a sentence."""

    threshold: float | None
    shrinkage: float
    gain: float  # share of all pixels
    words: str


def spread(view: StoreView) -> dict[str, Any]:
    """Fit the head to all answers about a store and write what it corrects; what it corrected before is withdrawn.

    Returns:
        words: what held-back answers say, one sentence; answers, regions, pixels: fitted to, corrected; points: of
            right labels, expected.

    Raises:
        CheckpointError: the trunk's weights are not installed. InputError: a photograph is missing.
    """
    from hmsa_core.inference.network.region_features import RegionFeatures

    trunk, review, classes = RegionFeatures(), review_of(view), view.classes.num_classes
    answers = collect(view, trunk)
    found, marks = judge(answers, classes), list[Mark]()
    count = {"answers": len(answers.label), "regions": 0, "pixels": 0}
    if found.threshold is not None:
        head, pictures, labels = Head(answers, classes, found.shrinkage), view.image_digests(), labels_id(view.lineage)
        for name in view.names:
            regions, label, described = describe(view, name, trunk)
            new, sure = changes(head, described, label)
            wanted = np.where(sure >= found.threshold, new, UNTOUCHED)
            wanted[_corrected(review, name, regions, view)] = UNTOUCHED
            said = wanted[regions].astype(np.uint8)
            if pixels := int((said != UNTOUCHED).sum()):
                patch = Patch.of(said, view.classes)
                marks.append(Mark("", name, "correct", None, "", "", pictures[name], labels, "", patch, alike=True))
                count["regions"] += int((wanted != UNTOUCHED).sum())
                count["pixels"] += pixels
    review.replace_alike(marks)
    return {**count, "points": round(100 * found.gain, 3), "words": found.words}


def describe(
    view: StoreView, name: str, trunk: RegionFeatures, regions: Ints | None = None
) -> tuple[Ints, Ints, Float64]:
    """Regions of an image: number of each pixel's (HxW), their labels (R,) and descriptions (R, D).

    `regions` are by default those that questions are asked about. A region of several labels has the most frequent.
    """
    label, code = view.read(name)
    regions = regions_of(label) if regions is None else regions
    flat, pixels, (height, width) = regions.ravel(), np.bincount(regions.ravel()), label.shape
    rows, columns = np.indices(label.shape)
    level = code.astype(np.float64)
    planes = np.log((level + 1) / (NUM_CODES - level + 0.5)), rows / height, columns / width
    sure, y, x = (np.bincount(flat, plane.ravel()) / pixels for plane in planes)
    of_label = np.bincount(flat * 256 + label.ravel(), minlength=256 * len(pixels)).reshape(-1, 256)
    seen = trunk(read_image(view.pictures.picture_path(name)), regions)
    described = np.column_stack([sure, np.log(pixels), y, x, np.abs(x - 0.5), seen])
    return regions, of_label.argmax(1), described.astype(np.float64)


def collect(view: StoreView, trunk: RegionFeatures) -> Answers:
    """Answers about the labels of now and of earlier ones that stand: a class was said, and nobody withdrew it.

    A teacher that has learned from answers is better there than elsewhere. Then less is corrected than might be.
    """
    standing = {mark.id: mark for mark in review_of(view).marks() if mark.name in view}
    answered: dict[str, list[dict[str, Any]]] = {}
    for questions in SpotFile(Questions, view).every():
        for item in questions.items:
            if item.get("mark") in standing and item["answer"] not in (MIXED, UNSURE):
                answered.setdefault(item["name"], []).append(item)
    described, rows = [np.zeros((0, _NOT_OF_TRUNK))], list[tuple[int, int, float, int]]()
    for name, items in sorted(answered.items()):
        info, run = view.info(name), view.position(name) // _RUN
        height, width = info["height"], info["width"]
        regions = np.zeros((height, width), np.intp)
        for number, item in enumerate(items, 1):
            regions[reviewed([standing[item["mark"]]], height, width, view.classes)[1] != UNTOUCHED] = number
        regions = np.unique(regions, return_inverse=True)[1].reshape(regions.shape)  # repeated answers hide others
        _, label, of_image = describe(view, name, trunk, regions)
        at = [regions[item["y"], item["x"]] for item in items]
        described = [*described, of_image[at]] if rows else [of_image[at]]
        said = [view.classes.index(item["answer"]) for item in items]
        weights = [1 / item["share"] for item in items]
        rows += zip(label[at], said, weights, [run] * len(items), strict=True)
    columns = np.array(rows, np.float64).reshape(-1, 4).T
    label, said, run_of = (columns[i].astype(np.intp) for i in (0, 1, 3))
    return Answers(np.concatenate(described), label, said, columns[2], run_of)


def _corrected(review: ReviewFile, name: str, regions: Ints, view: StoreView) -> Ints:
    """Numbers of the regions of an image in which people corrected something."""
    return np.unique(regions[said_of(review, view, name) != UNTOUCHED])


# -- the head and what held-back answers say of it --------------------------------------------------------


class Head:
    """P(class | description, label) of a region, fitted to answers; `shrinkage` of squared weights."""

    def __init__(self, answers: Answers, classes: int, shrinkage: float) -> None:
        self.classes = classes
        self._mean, self._scale = answers.described.mean(0), np.maximum(answers.described.std(0), 1e-6)
        seen = ((answers.described - self._mean) / self._scale)[:, _NOT_OF_TRUNK:]
        self._axes = np.linalg.svd(seen, full_matrices=False)[2][:_COMPONENTS].T  # principal components
        x, n = self._design(answers.described, answers.label), len(answers.label)
        relative = answers.weight / answers.weight.mean()
        weight = np.minimum(relative, _LARGEST_WEIGHT)[:, None]
        self.rarity = (np.bincount(answers.said, relative, classes) + 1) ** -_RARITY
        wanted = np.eye(classes)[answers.said]

        def loss(flat: Float64) -> tuple[float, Float64]:
            table = flat.reshape(-1, classes)
            p = _softmax(x @ table)
            right = np.maximum(p[np.arange(n), answers.said], 1e-12)
            slope = x.T @ ((p - wanted) * weight) + 2 * shrinkage * table
            return float(shrinkage * (table**2).sum() - weight[:, 0] @ np.log(right)), slope.ravel()

        start = np.zeros(x.shape[1] * classes)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
        self._table = found.x.reshape(-1, classes)

    def __call__(self, described: Float64, label: Ints) -> Float64:
        """Probabilities (n, C)."""
        return _softmax(self._design(described, label) @ self._table)

    def _design(self, described: Float64, label: Ints) -> Float64:
        x = (described - self._mean) / self._scale
        # All columns of the trunk weigh as much as the label: shrinkage acts on both alike.
        trunk = x[:, _NOT_OF_TRUNK:] @ self._axes * (3 / np.sqrt(max(1, x.shape[1] - _NOT_OF_TRUNK)))
        return np.hstack([x[:, :_NOT_OF_TRUNK] / 2, trunk, 3 * np.eye(self.classes)[label], np.ones((len(x), 1))])


def _softmax(logits: Float64) -> Float64:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))


def changes(head: Head, described: Float64, label: Ints) -> tuple[Ints, Float64]:
    """The head's class of regions, rare ones favoured; its probability where that is not the label, 0 elsewhere."""
    known = label != IGNORE
    p = np.zeros((len(label), head.classes))
    p[known] = head(described[known], label[known])
    new = (p * head.rarity).argmax(1)
    return new, np.where(known & (new != label), p[np.arange(len(new)), new], 0.0)


def judge(answers: Answers, classes: int) -> Judgement:
    """Whether held-back answers allow changes; runs of neighbouring images are held back together.

    Of the thresholds at which more changes are surely right (the answer is the new class) than wrong (it is the
    label), the one that makes most pixels right.
    """
    fold = answers.run % _FOLDS
    if len(np.unique(fold)) < _FOLDS:
        return Judgement(None, 1.0, 0.0, f"alike regions: too few answers ({len(fold)}), nothing is corrected")
    fits = [_held_back(answers, fold, classes, shrinkage) for shrinkage in _SHRINKAGE]
    _, shrinkage, new, sure = min(fits, key=lambda fit: fit[0])
    said = f"alike regions: {len(fold)} answers do not show that changes are right, nothing is corrected"
    best = Judgement(None, shrinkage, 0.0, said)
    for threshold in _THRESHOLDS:
        is_new = (sure >= threshold) & (new != answers.label)
        good, bad = (is_new & (answers.said == one) for one in (new, answers.label))
        decided = good | bad
        draws = list(zip(answers.weight[decided].tolist(), good[decided].tolist(), strict=True))
        share, low, _ = weighted_share(draws, _CONFIDENCE)
        gain = float(answers.weight @ (good.astype(float) - bad) / answers.weight.sum())
        if low <= 0.5 and threshold <= _GIVEN_HIGHER:
            break
        if low > 0.5 and gain > best.gain:
            said = f"alike regions: {share:.0%} of {len(draws)} held-back changes are right (at least {low:.0%}): "
            best = Judgement(threshold, shrinkage, gain, f"{said}+{100 * gain:.2f} points of right labels expected")
    return best


def _held_back(answers: Answers, fold: Ints, classes: int, shrinkage: float) -> tuple[float, float, Ints, Float64]:
    """Weighted log loss, the shrinkage, and `changes` of answers by heads that did not see their images."""
    new, sure, right = np.zeros(len(fold), np.intp), np.zeros(len(fold)), np.zeros(len(fold))
    for held in (fold == number for number in range(_FOLDS)):
        head = Head(Answers(*(column[~held] for column in answers)), classes, shrinkage)
        described, label = answers.described[held], answers.label[held]
        new[held], sure[held] = changes(head, described, label)
        right[held] = head(described, label)[np.arange(len(label)), answers.said[held]]
    return float(-answers.weight @ np.log(np.maximum(right, 1e-12))), shrinkage, new, sure
