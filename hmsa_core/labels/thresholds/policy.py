"""The policy: from which code on each class is kept, with the evidence for it, in one sealed JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.store.format import binding
from hmsa_core.taxonomy import IGNORE, ClassTable

FORMAT, VERSION = "hmsa-threshold-policy", 1
WITHHELD = NUM_CODES  # 256: no code reaches it

Status = Literal["given", "certified", "measured", "estimate", "pooled", "withheld"]
PROMISES: dict[Status, str] = {  # what each status promises about the kept pixels of its class
    "certified": "distribution-free: answers about drawn pixels prove it for these very labels",
    "measured": "under the block model: in 9 of 10 simulated searches for the threshold the target is reached",
    "estimate": "none: a figure of few blocks, or its search for the threshold fails too often in simulation",
    "pooled": "none for the class alone: it is shrunk to its group",
    "withheld": "nothing is kept",
    "given": "none: set by hand",
}
_CODE = ConfidenceCode()


@dataclass(frozen=True)
class ClassPolicy:
    """One class: code that it needs (256 = withheld), how that was found, and the numbers behind it."""

    name: str
    code: int
    status: Status
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> str | None:
        """The threshold as a decimal string; None when the class is withheld."""
        return None if self.code >= NUM_CODES else _CODE.threshold(self.code)


def keep(label: NDArray[np.uint8], code: NDArray[np.uint8], codes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Label where code >= codes[label], else 255; ids without an entry in `codes` become 255 too."""
    kept = np.flatnonzero(np.asarray(codes) < NUM_CODES)
    need, name = np.zeros(256, np.uint8), np.full(256, IGNORE, np.uint8)
    need[kept], name[kept] = np.asarray(codes)[kept], kept
    # 255 is the largest label, so that "ignore where the code is too low" is a maximum.
    if not label.size:
        return label.copy()
    ids, given = (np.ascontiguousarray(a).reshape(1, -1) for a in (label, code))  # cv2 wants two dimensions
    low = cv2.compare(cv2.LUT(ids, need), given, cv2.CMP_GT)
    return np.asarray(cv2.max(cv2.LUT(ids, name), low), np.uint8).reshape(label.shape)


@dataclass(eq=False)
class ThresholdPolicy:
    """Thresholds per class and the calibration table; a ConfigError where entries are not those of the classes."""

    classes: ClassTable
    entries: tuple[ClassPolicy, ...]  # in trainId order
    _: KW_ONLY
    # float64 (C, 256), P(label is right | class, code), non-decreasing in the code; None for plain numbers
    table: NDArray[np.float64] | None = None
    # teacher hash, scales, flip, precision that it was measured with; None = applies to any store
    binding: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # target, floor, ... as they were in force
    evidence: dict[str, Any] = field(default_factory=dict)  # of the whole policy: blocks, ceiling, ...

    def __post_init__(self) -> None:
        if [e.name for e in self.entries] != list(self.classes.classes):
            raise ConfigError("a policy needs one entry for each class, in the order of the class table")
        self.settings, self.evidence = dict(self.settings), dict(self.evidence)  # they may be another policy's

    def codes(self) -> NDArray[np.uint16]:
        """Smallest code that keeps a pixel, for each class; 256 = withheld."""
        return np.array([entry.code for entry in self.entries], np.uint16)

    def apply(self, label: NDArray[np.uint8], code: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The label where its class's threshold is reached, 255 elsewhere (uint8 HxW)."""
        for what, array in (("label", label), ("code", code)):
            if array.dtype != np.uint8:
                raise InputError(f"{what} must be uint8, got {array.dtype}", hint="codes: ConfidenceCode().encode(p)")
        if label.shape != code.shape:
            raise InputError(f"label is {label.shape} but code is {code.shape}")
        return keep(label, code, self.codes())

    def check(self, lineage: Mapping[str, Any], classes: ClassTable, where: str = "the store") -> None:
        """Refuse labels that this policy was not measured for (ConfigError names what differs)."""
        if classes != self.classes:
            raise ConfigError(
                f"the policy is for the classes of {self.classes.name}, {where} has those of {classes.name}",
                hint="run calibrate with these classes, or give a plain threshold",
            )
        if self.binding is None:
            return
        ours, other = self.binding, binding(lineage)
        keys = [key for key in {**ours, **other} if ours.get(key) != other.get(key)]
        differing = [f"{key}: {ours.get(key, 'another')} here, {other.get(key, 'another')} there" for key in keys]
        if differing:
            raise ConfigError(
                f"the policy was measured with another teacher or inference than {where} ({'; '.join(differing)})",
                hint="run calibrate for this teacher, or give a plain threshold",
            )

    def on(self, store: str) -> ThresholdPolicy:
        """The policy for the store of this digest: what was certified on other labels is an estimate here."""
        void = {"reason": "certified on other labels: void for these"}
        entries = tuple(
            replace(e, status="estimate", evidence={**e.evidence, **void})
            if e.status == "certified" and e.evidence.get("store") != store
            else e
            for e in self.entries
        )
        if entries == self.entries:
            return self
        evidence = {key: value for key, value in self.evidence.items() if key != "certificate"}
        return replace(self, entries=entries, evidence=evidence)

    def _to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "class_table": self.classes.to_json(),
            "binding": self.binding,
            "settings": self.settings,
            "evidence": self.evidence,
            "classes": [{**vars(e), "threshold": e.threshold} for e in self.entries],
            "table": None if self.table is None else [[round(float(p), 6) for p in row] for row in self.table],
        }

    @cached_property
    def digest(self) -> str:
        """Digest of the policy file."""
        return sealed.digest_of(self._to_json())

    def save(self, path: str | Path) -> str:
        """Write the policy file; return its digest."""
        return sealed.write(Path(path), self._to_json())

    @classmethod
    def load(cls, path: str | Path) -> ThresholdPolicy:
        """Read a policy file; a damaged or edited one is a StoreError."""
        where = Path(path)
        value = sealed.read_as(where, "a policy", (FORMAT, VERSION))
        entries = tuple(ClassPolicy(e["name"], e["code"], e["status"], e["evidence"]) for e in value["classes"])
        for entry, raw in zip(entries, value["classes"], strict=True):
            if entry.threshold != raw["threshold"]:
                raise StoreError(f"{where}: class {entry.name}: code {entry.code} is not threshold {raw['threshold']}")
        return cls(
            ClassTable.from_json(value["class_table"]),
            entries,
            table=None if value["table"] is None else np.array(value["table"], np.float64),
            binding=value["binding"],
            settings=value["settings"],
            evidence=value["evidence"],
        )


def from_threshold(threshold: str | float, classes: ClassTable) -> ThresholdPolicy:
    """The simplest policy: one number on the grid for all classes, bound to nothing."""
    code = _CODE.code_for(threshold)
    entries = tuple(ClassPolicy(name, code, "given") for name in classes.classes)
    return ThresholdPolicy(classes, entries, settings={"threshold": _CODE.threshold(code)})
