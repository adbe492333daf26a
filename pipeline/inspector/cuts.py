"""Thresholds as people write them (0.9, policy, rider:0.95) turned into one code per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy, ThresholdPolicy
from hmsa_core.taxonomy import ClassTable

__all__ = ["Cuts", "OffGridError", "code_of", "parse_cuts", "to_policy"]

_CODE = ConfidenceCode()


class OffGridError(ConfigError):
    """A threshold that is no edge of the confidence code; `neighbours` are the edges beside it."""

    def __init__(self, given: str, neighbours: tuple[str, ...]) -> None:
        super().__init__(
            f"threshold {given} is not an edge of the confidence code; the nearest: {' and '.join(neighbours)}",
            hint=f"use {' or '.join(neighbours)}",
        )
        self.given, self.neighbours = given, neighbours


@dataclass(frozen=True)
class Cuts:
    """One code per class, and where it comes from.

    Attributes:
        codes: smallest code that is kept, int64 (C,); 256 = withheld.
        statuses: per class "one for all", a policy's status, "yours" or "withheld".
        base: the threshold as an edge of the grid, or the name of a policy.
        policy: the policy, when the base is one.
        pins: class ids with a threshold of their own.
    """

    codes: NDArray[np.int64]
    statuses: tuple[str, ...]
    base: str
    policy: ThresholdPolicy | None = None
    pins: tuple[int, ...] = ()

    @property
    def threshold(self) -> str | None:
        """The common threshold as an edge of the grid; None when a policy is the base."""
        return self.base if self.policy is None else None

    def edge(self, class_id: int) -> str:
        """Threshold of a class as text, "withheld" when nothing of it is kept."""
        return _CODE.threshold(int(self.codes[class_id]))


def code_of(text: str | float) -> int:
    """Code of a threshold on the grid; anything else is an OffGridError with its neighbours."""
    below, above = _CODE.neighbours(text)  # not a number at all: ConfigError
    if below is not None and below == above:
        return _CODE.code_for(below)
    raise OffGridError(str(text), tuple(edge for edge in (below, above) if edge is not None))


def _pin(pair: str, classes: ClassTable) -> tuple[int, int]:
    name, colon, text = pair.rpartition(":")
    if not colon:
        raise ConfigError(f"cut {pair!r}: expected CLASS:THRESHOLD, for example rider:0.95")
    return classes.index(name), WITHHELD if text == "withheld" else code_of(text)


def parse_cuts(
    classes: ClassTable,
    threshold: str | float | Decimal | None,
    pins: Sequence[str] = (),
    policies: Mapping[str, ThresholdPolicy] | None = None,
) -> Cuts:
    """Cuts of a base and pins.

    Args:
        classes: class table of the store.
        threshold: an edge of the grid, or a key of `policies`.
        pins: "CLASS:THRESHOLD" or "CLASS:withheld", for classes with their own threshold.
        policies: policies by the names they go by ("policy", "policy-b").

    Raises:
        OffGridError: a threshold is not on the grid.
        ConfigError: no such policy, class or number.
    """
    known = policies or {}
    text = str(threshold) if threshold is not None else ""
    if text in known:
        policy: ThresholdPolicy | None = known[text]
        codes, base = known[text].codes().astype(np.int64), text
        statuses = [entry.status for entry in known[text].entries]
        names: list[str] = [*statuses]
    elif text.startswith("policy"):
        raise ConfigError(
            f"threshold {text!r}: no such policy here",
            hint="give one with --policy FILE (a workspace's own is calibration/policy.json)",
        )
    else:
        code = code_of(text)
        policy, base = None, _CODE.threshold(code)
        codes = np.full(classes.num_classes, code, np.int64)
        names = ["one for all"] * classes.num_classes
    own = dict(_pin(pair, classes) for pair in pins)
    for class_id, code in own.items():
        codes[class_id] = code
        names[class_id] = "withheld" if code >= NUM_CODES else "yours"
    return Cuts(codes, tuple(names), base, policy, tuple(sorted(own)))


def to_policy(cuts: Cuts, classes: ClassTable, measured: ThresholdPolicy | None) -> ThresholdPolicy:
    """The policy file that stands for these cuts.

    A class whose code is the measured policy's keeps its entry with all evidence; another one becomes
    "given" (or "withheld"), and says what it was before.
    """
    entries = []
    for i, name in enumerate(classes.classes):
        before = measured.entries[i] if measured is not None else None
        code = int(cuts.codes[i])
        if before is not None and before.code == code:
            entries.append(before)
            continue
        note: dict[str, object] = {"set_by": "user"}
        if before is not None:
            note["was"] = {"code": before.code, "threshold": before.threshold, "status": before.status}
        entries.append(ClassPolicy(name, code, "withheld" if code >= NUM_CODES else "given", note))
    settings = dict(measured.settings) if measured is not None else {}
    settings["chosen_by"] = "user"
    if cuts.threshold is not None:
        settings["threshold"] = cuts.threshold
    return ThresholdPolicy(
        classes,
        tuple(entries),
        table=measured.table if measured is not None else None,
        binding=measured.binding if measured is not None else None,
        settings=settings,
        evidence=measured.evidence if measured is not None else None,
    )
