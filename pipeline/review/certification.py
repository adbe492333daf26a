"""Begin certificates, answer them from true label maps, and make policies from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import holds_train_ids, read_header, read_label_ids
from hmsa_core.data.walk import LABEL_SUFFIXES, kinds_of, stem_of, walk
from hmsa_core.io.errors import InputError, IntegrityError
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.policy import PROMISES, ClassPolicy, ThresholdPolicy
from hmsa_core.taxonomy import IGNORE
from pipeline.review.audit import Audit
from pipeline.review.certificate import Certificate
from pipeline.review.precision import calibration_policy, load_policy
from pipeline.review.spot_check import SpotFile
from pipeline.review.view import StoreView

if TYPE_CHECKING:
    from hmsa_core.inference.evaluation.labelled_files import Ids

UInt8 = NDArray[np.uint8]
_LOOKED_AT = 12  # label maps that are read to find out whether they hold trainIds


def begin(view: StoreView, *, policy: Path | None = None, **settings: Any) -> Certificate:
    """Begin a certificate without answers; the first guess is the calibration (of `policy` or the workspace) and audit.

    `settings` and errors are those of `Certificate.plan`.
    """
    known = policy if policy is not None else calibration_policy(view.path)[0]
    found = None if known is None else load_policy(known, view)
    audit = None
    with suppress(IntegrityError):  # a damaged audit is left out of the guess
        audit = SpotFile(Audit, view).current
    if found is not None and found.table is not None:
        settings |= {"table": found.table, "policy": found.digest}
    return Certificate.plan(view, audit=audit, **settings)


# -- answers from true label maps -------------------------------------------------------------------------


class TrueLabels:
    """Label maps NAME.png below a folder that answer instead of a person; void means "can't tell".

    Args:
        folder: NAME.png for the images of the store; sub-folders and the endings of Cityscapes and CamVid are known.
        classes: class table of the store.
        ids: values in the maps; "auto": ids of the class table or trainIds, whichever agrees with the labels.
    """

    def __init__(self, folder: Path, view: StoreView, ids: Ids = "auto") -> None:
        from hmsa_core.inference.evaluation.labelled_files import alike, label_reader

        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", hint="give the folder of label maps NAME.png")
        self.folder, self._view = folder, view
        self.files = _files_of(folder, view.names)
        if not self.files:
            hint = f"the first would be {view.names[0]}.png" if view.names else "the store has no image"
            other = (
                f"; files of other kinds: {kinds}" if (kinds := kinds_of(walk(folder, LABEL_SUFFIXES).others)) else ""
            )
            raise InputError(f"{folder}: no label map of any image of {view.path}{other}", hint=hint)
        self.notes: list[str] = []
        if ids == "auto":
            ids = self._guessed()
        if lacking := [name for name in view.names if name not in self.files]:
            of = f"{len(lacking)} of {len(view.names)} images have no label map"
            self.notes.append(f'{of}, such as {lacking[0]}: "can\'t tell", in a certificate as wrong')
        table = view.classes.of_train_ids() if ids == "train" else view.classes
        self._alike = alike
        self._read = lru_cache(maxsize=64)(label_reader(table, colours=ids == "colours"))

    def _guessed(self) -> Ids:
        """Guess whether the maps hold trainIds or ids of the class table: the values that fit the labels better."""
        classes = self._view.classes
        agree = {"train": 0, "file": 0}
        for name in list(self.files)[:: max(1, len(self.files) // _LOOKED_AT)]:
            if holds_train_ids(self.files[name]) or read_header(self.files[name]).mode in ("RGB", "RGBA"):
                return "file"
            values, label = read_label_ids(self.files[name]), self._view.read(name)[0]
            there = np.asarray(cv2.resize(values, label.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
            as_ids = np.asarray(cv2.LUT(there, classes.id_to_train), np.uint8)
            agree["train"] += int(((there == label) & (there != IGNORE)).sum())
            agree["file"] += int(((as_ids == label) & (as_ids != IGNORE)).sum())
        if not classes.has_file_ids or agree["file"] > agree["train"]:
            return "file"
        self.notes.append(f"{self.folder}: read as trainIds, which agree with the labels more than ids do")
        return "train"

    def truth(self, name: str) -> UInt8 | None:
        """True label of an image at the size of its labels (uint8 HxW); None without a label map."""
        file = self.files.get(name)
        if file is None:
            return None
        truth, info = self._read(file), self._view.info(name)
        (height, width), image_height, image_width = truth.shape, int(info["height"]), int(info["width"])
        if not self._alike(width, height, image_width, image_height):
            raise InputError(
                f"{file} is {width}x{height}, the labels of {name} are {image_width}x{image_height}: "
                "they do not show the same",
                hint="give each label map its own image's proportions (upright, as the EXIF rotation says)",
            )
        rows, columns = np.arange(image_height) * height // image_height, np.arange(image_width) * width // image_width
        return np.asarray(truth[rows[:, None], columns])

    def answer(self, draw: dict[str, Any]) -> str:
        """The answer to one draw."""
        truth = self.truth(draw["name"])
        there = IGNORE if truth is None else int(truth[draw["y"], draw["x"]])
        return "unsure" if there == IGNORE else "right" if there == draw["class"] else "wrong"


_ENDINGS = ("", "_mask", "_L", "_gtFine_labelIds", "_gtFine_labelTrainIds", "_labelIds", "_labelTrainIds")


def _files_of(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    direct = {name: path for name in names if (path := folder / f"{name}.png").is_file()}
    if len(direct) == len(names):
        return direct
    by_stem = {stem_of(path): path for path in walk(folder, LABEL_SUFFIXES).paths()}
    for name in names:
        stem = normalize("NFC", Path(name).name)
        found = next((by_stem[stem + ending] for ending in _ENDINGS if stem + ending in by_stem), None)
        if name not in direct and found is not None:
            direct[name] = found
    return direct


def answer_all(certificate: Certificate, view: StoreView, labels: TrueLabels, tell: Callable[[int], None]) -> None:
    """Draw and answer until no class is worth another draw or the budget is spent."""
    certificate.look(view)
    while certificate.plan_draws(view):
        for number, draw in enumerate(certificate.items):
            if draw["verdict"] is None:
                certificate.answer(view, number, labels.answer(draw))
        tell(len(certificate.drawn))


# -- policies from certificates -----------------------------------------------------------------------------


def certified_policy(certificate: Certificate, view: StoreView, measured: ThresholdPolicy | None) -> ThresholdPolicy:
    """A policy with the certified thresholds, status "certified"; other classes as in `measured`, else withheld."""
    from hmsa_core.labels.store.format import binding

    results = certificate.results()
    entries = []
    for c, name in enumerate(view.classes.classes):
        found = results.get(name)
        if found is not None and found["certified"]:
            keys = ("precision", "lower", "coverage", "draws", "right", "unsure")
            proof = {key: certificate.value[key] for key in ("store", "delta", "target")}
            entries.append(ClassPolicy(name, found["code"], "certified", {**{k: found[k] for k in keys}, **proof}))
        elif measured is not None:
            entries.append(_taken_over(measured, c))
        else:
            entries.append(ClassPolicy(name, NUM_CODES, "withheld", {"reason": "not certified"}))
    named = {key: certificate.value[key] for key in ("store", "target", "delta", "who")}
    return ThresholdPolicy(
        view.classes,
        tuple(entries),
        table=None if measured is None else measured.table,
        binding=binding(view.lineage),
        settings={} if measured is None else measured.settings,
        evidence={
            "target": certificate.value["target"],
            "certificate": {"digest": certificate.digest, **named},
            "promises": {entry.status: PROMISES[entry.status] for entry in entries},
        },
    )


def _taken_over(policy: ThresholdPolicy, class_id: int) -> ClassPolicy:
    """A class's entry of another policy with that policy's target; the status "certified" becomes "estimate"."""
    entry = policy.entries[class_id]
    evidence = {"target": policy.evidence.get("target"), **entry.evidence}
    if entry.status != "certified":
        return replace(entry, evidence=evidence)
    return replace(entry, status="estimate", evidence={**evidence, "reason": "certified by another certificate"})
