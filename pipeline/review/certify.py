"""Certificates beside their stores: begun, continued, answered by true label maps, and checked."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import holds_train_ids, read_header, read_label_ids
from hmsa_core.data.walk import LABEL_SUFFIXES, stem_of, walk
from hmsa_core.io.errors import HmsaError, InputError, IntegrityError, StoreError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.records import saving, stamp_of
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.certificate import BATCH, Certificate, certificate_path
from hmsa_core.labels.thresholds.policy import PROMISES, ClassPolicy, ThresholdPolicy
from hmsa_core.taxonomy import IGNORE
from pipeline.review.precision import calibration_policy, load_policy
from pipeline.review.view import StoreView

if TYPE_CHECKING:
    from hmsa_core.inference.evaluation.labelled_files import Ids

UInt8 = NDArray[np.uint8]
_LOOKED_AT = 12  # label maps that tell which numbers they hold
_WAITING = 2 * BATCH  # unanswered draws that are kept ready


def begin(view: StoreView, *, policy: Path | None = None, **settings: Any) -> Certificate:
    """A certificate without answers; the calibration of the workspace, or of `policy`, is the guess.

    `settings`, and errors, are those of `Certificate.plan`.
    """
    known = policy if policy is not None else calibration_policy(view.path)[0]
    found = None if known is None else load_policy(known, view)
    if found is None or found.table is None:
        return Certificate.plan(view, **settings)
    return Certificate.plan(view, table=found.table, policy=found.digest, **settings)


# -- answers from true label maps -------------------------------------------------------------------------


class TrueLabels:
    """Label maps NAME.png below a folder that answer in a person's place; void is "can't tell".

    Args:
        folder: NAME.png for the images of the store; sub-folders and the endings of Cityscapes and CamVid are known.
        classes: class table of the store.
        ids: what the maps hold; "auto": ids of the class table or trainIds, whichever agrees with the labels.
    """

    def __init__(self, folder: Path, view: StoreView, ids: Ids = "auto") -> None:
        from hmsa_core.inference.evaluation.labelled_files import alike, label_reader

        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", hint="give the folder of label maps NAME.png")
        self.folder, self._view = folder, view
        self.files = _files_of(folder, view.names)
        if not self.files:
            hint = f"the first would be {view.names[0]}.png" if view.names else "the store has no image"
            raise InputError(f"{folder}: no label map of any image of {view.path}", hint=hint)
        self.note = ""
        if ids == "auto":
            ids, self.note = self._guessed()
        of = view.classes.of_train_ids() if ids == "train" else view.classes
        self._alike = alike
        self._read = lru_cache(maxsize=64)(label_reader(of, colours=ids == "colours"))

    def _guessed(self) -> tuple[Ids, str]:
        """Whether the maps hold trainIds or ids of the class table: whichever they agree with more."""
        classes = self._view.classes
        agree = {"train": 0, "file": 0}
        for name in list(self.files)[:: max(1, len(self.files) // _LOOKED_AT)]:
            if holds_train_ids(self.files[name]) or read_header(self.files[name]).mode in ("RGB", "RGBA"):
                return "file", ""
            values, label = read_label_ids(self.files[name]), self._view.read(name)[0]
            there = np.asarray(cv2.resize(values, label.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
            as_ids = np.asarray(cv2.LUT(there, classes.id_to_train), np.uint8)
            agree["train"] += int(((there == label) & (there != IGNORE)).sum())
            agree["file"] += int(((as_ids == label) & (as_ids != IGNORE)).sum())
        if not classes.has_own_ids or agree["file"] > agree["train"]:
            return "file", ""
        return "train", f"{self.folder}: read as trainIds, which agree with the labels more than ids do"

    def answer(self, draw: dict[str, Any], class_id: int) -> str:
        """The answer to one draw of a class."""
        file = self.files.get(draw["image"])
        if file is None:
            return "unsure"
        truth, info = self._read(file), self._view.info(draw["image"])
        (height, width), image_height, image_width = truth.shape, int(info["height"]), int(info["width"])
        if not self._alike(width, height, image_width, image_height):
            raise InputError(
                f"{file} is {width}x{height}, the labels of {draw['image']} are {image_width}x{image_height}: "
                "they do not show the same",
                hint="give each label map its own image's proportions (upright, as the EXIF rotation says)",
            )
        there = int(truth[draw["y"] * height // image_height, draw["x"] * width // image_width])
        return "unsure" if there == IGNORE else "right" if there == class_id else "wrong"


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
    while certificate.plan_draws(view):
        for number, draw in enumerate(certificate.draws):
            if draw["answer"] is None:
                certificate.answer(number, labels.answer(draw, certificate.classes[draw["class"]]["class"]))
        tell(len(certificate.draws))


# -- what a certificate is good for -----------------------------------------------------------------------


def certified_policy(certificate: Certificate, view: StoreView, measured: ThresholdPolicy | None) -> ThresholdPolicy:
    """A policy with the certified cuts, status "certified"; other classes as `measured` has them, else withheld."""
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
    """A class's entry of another policy with that policy's target; only this certificate's classes stay certified."""
    entry = policy.entries[class_id]
    evidence = {"target": policy.evidence.get("target"), **entry.evidence}
    if entry.status != "certified":
        return replace(entry, evidence=evidence)
    return replace(entry, status="estimate", evidence={**evidence, "reason": "certified by another certificate"})


# -- the file that several people answer ------------------------------------------------------------------


def _answers(certificate: Certificate) -> int:
    return sum(draw["answer"] is not None for draw in certificate.draws)


class CertificateFile:
    """The certificate beside a store, with the answers of all servers: begins it, records answers, draws on."""

    def __init__(self, view: StoreView, path: str | os.PathLike[str] | None = None) -> None:
        self.path = certificate_path(view.path.resolve()) if path is None else Path(path)
        self.aside: Path | None = None  # where answers of another plan were put
        self._view = view
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, int], Certificate] | None = None

    @property
    def current(self) -> Certificate | None:
        """What the file holds now, of whatever labels; None where there is none."""
        stamp = stamp_of(self.path)
        if stamp is None:
            return None
        if self._seen is None or self._seen[0] != stamp:
            self._seen = (stamp, Certificate.load(self.path))
        return self._seen[1]

    def usable(self) -> tuple[Certificate | None, str]:
        """The certificate of these very labels, or None and why the one that is there does not count ("" = none)."""
        try:
            found = self.current
        except HmsaError as error:
            return None, f"does not count: {error.message}"
        if found is None or found.is_of(self._view):
            return found, ""
        return None, "void: the store has changed since it was certified"

    def start(self, certificate: Certificate) -> Certificate:
        """Keep a new certificate with its first draws; the answers of the same plan, also put aside ones, go on."""
        with self._alone():
            kept = self._kept()
            if kept is None or kept.plan_digest != certificate.plan_digest:
                self._put_aside(kept)
                same = [one for one in self._put_asides() if one.plan_digest == certificate.plan_digest]
                kept = max(same, key=_answers, default=certificate)
            self._keep(kept)
            return kept

    def replace(self, certificate: Certificate) -> None:
        """Keep a certificate that label maps have answered; another one is put aside."""
        with self._alone():
            kept = self._kept()
            if kept is None or kept.digest != certificate.digest:
                self._put_aside(kept)
                certificate.save(self.path)

    def _kept(self) -> Certificate | None:
        return Certificate.load(self.path) if self.path.is_file() else None

    def _put_aside(self, kept: Certificate | None) -> None:
        """Save answers under their digest: an attempt that failed must stay visible."""
        if kept is not None and _answers(kept):
            self.aside = self.path.with_name(f"{self.path.stem}-{kept.digest[:16]}.json")
            kept.save(self.aside)

    def _put_asides(self) -> Iterator[Certificate]:
        """Earlier certificates of other plans; a damaged one is of no use."""
        for file in self.path.parent.iterdir():
            if re.fullmatch(rf"{re.escape(self.path.stem)}-[0-9a-f]{{16}}\.json", file.name):
                with suppress(StoreError, IntegrityError):
                    yield Certificate.load(file)

    def answer(self, plan: str, number: int, answer: str) -> Certificate:
        """Record an answer, draw on where few draws are left, and rewrite the file.

        Raises:
            InputError: the certificate of the file is of other labels or of another plan.
        """
        with self._alone():
            self._view.check_current()
            kept = self.current
            if kept is None or kept.plan_digest != plan or not kept.is_of(self._view):
                raise InputError(f"{self.path}: another certificate was begun since", hint="open the audit anew")
            kept.answer(number, answer)
            self._keep(kept)
            return kept

    def _keep(self, certificate: Certificate) -> None:
        """Draw on where few draws wait, and write; what could not be written does not count."""
        self._seen = None
        waiting = len(certificate.draws) - _answers(certificate)
        while waiting < _WAITING // 2 and (added := certificate.plan_draws(self._view)):
            waiting += len(added)
        certificate.save(self.path)
        if (stamp := stamp_of(self.path)) is not None:
            self._seen = (stamp, certificate)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), what=f"certificate {self.path}", wait_s=10.0)
        with self._lock, saving(self.path), lock:
            yield
