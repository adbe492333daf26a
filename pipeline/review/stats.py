"""Thresholds as people write them, and the figures of a store under them (terminal, API, lists of the page).

All figures come from the store's sidecar tables; no pixel is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy, ThresholdPolicy
from hmsa_core.taxonomy import ClassTable
from pipeline.review.precision import Precision, PrecisionSources
from pipeline.review.view import StoreView, codes_of_one

_CODE = ConfidenceCode()


@dataclass(frozen=True)
class Thresholds:
    """Thresholds: one code per class, and the origin of each."""

    codes: NDArray[np.int64]  # smallest code that is kept, (C,); 256 = withheld
    statuses: tuple[str, ...]  # per class "one for all", a policy's status, "yours" or "withheld"
    base: str  # the threshold as an edge of the grid, or the name of a policy
    policy: ThresholdPolicy | None = None  # the policy, when the base is one

    @property
    def threshold(self) -> str | None:
        """The common threshold as an edge of the grid; None when a policy is the base."""
        return self.base if self.policy is None else None

    def text(self, class_id: int) -> str:
        """Threshold of a class as text, "withheld" when nothing of it is kept."""
        return _CODE.threshold(int(self.codes[class_id]))


def _pin(pair: str, classes: ClassTable) -> tuple[int, int]:
    name, colon, text = pair.rpartition(":")
    if not colon:
        raise ConfigError(f"cut {pair!r}: expected CLASS:THRESHOLD, for example rider:0.95")
    return classes.index(name), WITHHELD if text == "withheld" else _CODE.code_for(text)


def parse_thresholds(
    classes: ClassTable, threshold: str, pins: Sequence[str] = (), policies: Mapping[str, ThresholdPolicy] | None = None
) -> Thresholds:
    """Thresholds from a base and from pins of single classes.

    Args:
        classes: class table of the store.
        threshold: an edge of the grid, or a key of `policies`.
        pins: "CLASS:THRESHOLD" or "CLASS:withheld", for classes with another threshold.
        policies: policies by the names they go by ("policy", "policy-b").

    Raises:
        OffGridError: a threshold is not on the grid.
        ConfigError: no such policy, class or number.
    """
    policy, base = (policies or {}).get(threshold), threshold
    if policy is not None:
        codes, statuses = policy.codes().astype(np.int64), [str(entry.status) for entry in policy.entries]
    elif threshold.startswith("policy"):
        raise ConfigError(
            f"threshold {threshold!r}: no such policy here",
            hint="give one with --policy FILE (a workspace's own is calibration/policy.json)",
        )
    else:
        code = _CODE.code_for(threshold)
        base, count = _CODE.threshold(code), classes.num_classes
        codes, statuses = np.full(count, code), ["one for all"] * count
    for class_id, code in (_pin(pair, classes) for pair in pins):
        codes[class_id], statuses[class_id] = code, "withheld" if code >= NUM_CODES else "yours"
    return Thresholds(codes, tuple(statuses), base, policy)


def to_policy(thresholds: Thresholds, classes: ClassTable, measured: ThresholdPolicy | None) -> ThresholdPolicy:
    """The policy file for these thresholds.

    A class whose code is the measured policy's keeps its entry with all evidence; the entry of another class becomes
    "given" (or "withheld") and records the earlier threshold.
    """
    settings: dict[str, Any] = {"chosen_by": "user"} | (
        {} if thresholds.threshold is None else {"threshold": thresholds.threshold}
    )
    before: Sequence[ClassPolicy | None] = measured.entries if measured else (None,) * len(classes.classes)
    entries = tuple(map(_chosen, classes.classes, thresholds.codes.tolist(), before))
    if measured is None:
        return ThresholdPolicy(classes, entries, settings=settings)
    known: dict[str, Any] = {"binding": measured.binding, "evidence": measured.evidence}
    return ThresholdPolicy(classes, entries, table=measured.table, settings=measured.settings | settings, **known)


def _chosen(name: str, code: int, before: ClassPolicy | None) -> ClassPolicy:
    note: dict[str, object] = {"set_by": "user"}
    if before is not None:
        if before.code == code:
            return before
        note["was"] = {"code": before.code, "threshold": before.threshold, "status": before.status}
    return ClassPolicy(name, code, "withheld" if code >= NUM_CODES else "given", note)


SORTS = ("name", "coverage", "conflict", "uncertain", "drop")


@dataclass(frozen=True)
class Sort:
    """Order of images; `low` and `high` are the codes between which `drop` looks for losses."""

    kind: str
    low: int = 0
    high: int = 0


def parse_sort(text: str) -> Sort:
    """Read "name", "coverage", "conflict", "uncertain" or "drop:LOW:HIGH"."""
    kind, *edges = text.split(":")
    if kind not in SORTS or len(edges) != (2 if kind == "drop" else 0):
        raise ConfigError(f"sort {text!r}: expected coverage, conflict, uncertain, name or drop:0.8:0.95")
    if kind != "drop":
        return Sort(kind)
    low, high = (_CODE.code_for(edge) for edge in edges)
    if low > high:
        raise ConfigError(f"sort {text!r}: the first threshold must not exceed the second")
    return Sort(kind, low, high)


@dataclass(frozen=True)
class ImageQuery:
    """Filter and order of the listed images."""

    sort: Sort = Sort("name")
    class_id: int | None = None
    text: str = ""
    city: str = ""
    review: str = ""  # "", "flag", "accept" or "none"


def _share(part: float, whole: float) -> float | None:
    return round(100.0 * part / whole, 4) if whole else None


def _precision_json(found: Precision | None, expected: float | None) -> dict[str, Any]:
    values = (*((None,) * 4 if found is None else (found.value, found.low, found.high, found.marginal)), expected)
    keys = ("precision", "precision_low", "precision_high", "marginal_precision", "expected_precision")
    rounded = {key: value and round(value, 6) for key, value in zip(keys, values, strict=True)}
    return {**rounded, "precision_source": None if found is None else found.source}


def store_stats(
    view: StoreView, thresholds: Thresholds, sources: PrecisionSources, class_id: int | None = None
) -> dict[str, Any]:
    """Figures of the kept pixels: totals and one row per class, as plain JSON.

    Shares are per cent. `coverage` is kept / predicted as that class; `kept_share` is kept / all pixels.
    `marginal_precision` is the precision of the pixels exactly at the threshold: the last step added these.
    """
    totals = view.totals
    keeps = np.arange(NUM_CODES)[None, :] >= thresholds.codes[:, None]
    kept = np.where(keeps, totals, 0).sum(axis=1)
    chosen = range(view.classes.num_classes) if class_id is None else [class_id]
    known = sources.of_classes(thresholds.codes)
    rows = []

    def alone(c: int) -> NDArray[np.int64]:
        return codes_of_one(len(totals), c, int(thresholds.codes[c]))

    for c in chosen:
        predicted = int(totals[c].sum())
        rows.append(
            {
                "id": c,
                "name": view.classes.classes[c],
                "threshold": thresholds.text(c),
                "code": int(thresholds.codes[c]),
                "status": thresholds.statuses[c],
                "predicted": predicted,
                "kept": int(kept[c]),
                "coverage": _share(int(kept[c]), predicted),
                **_precision_json(known[c], sources.expected(alone(c))),
            }
        )
    whole = int(view.pixels.sum())
    all_kept = int(sum(row["kept"] for row in rows))
    found = sources.overall(thresholds.codes, known) if class_id is None else known[class_id]
    shown = thresholds.codes if class_id is None else alone(class_id)
    return {
        "store": str(view.path),
        "kind": view.kind,
        "images": len(view.statistics),
        "threshold": thresholds.threshold,
        "policy": thresholds.base if thresholds.policy is not None else None,
        "pixels": whole,
        "kept": all_kept,
        "kept_share": _share(all_kept, whole),
        **_precision_json(found, sources.expected(shown)),
        "classes": rows,
    }


def _matching(
    view: StoreView, query: ImageQuery, pixels: NDArray[Any], statuses: Mapping[str, str]
) -> NDArray[np.bool_]:
    chosen = np.ones(len(view.names), bool) if query.class_id is None else pixels > 0
    if query.text:
        chosen &= np.array([query.text.lower() in name.lower() for name in view.names], bool)
    if query.city:
        chosen &= np.array(view.statistics.cities, object) == query.city
    if query.review:
        want = "" if query.review == "none" else query.review
        chosen &= np.array([statuses.get(name, "") == want for name in view.names], bool)
    return chosen


def image_rows(
    view: StoreView,
    thresholds: Thresholds,
    query: ImageQuery,
    *,
    offset: int = 0,
    limit: int = 100,
    statuses: Mapping[str, str] | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Number of matching images and one page of them; images that people should look at first come first.

    With a class, all figures (pixels, kept, conflict, ...) are of that class alone, and images without it are
    left out. `uncertain` is the mean of 1 - confidence; `drop` the pixels lost between the two thresholds.
    """
    c, sort, reviewed = query.class_id, query.sort, statuses or {}

    def total(counts: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(counts.sum(axis=1) if c is None else counts[:, c])

    pixels = view.pixels if c is None else total(view.predicted)
    kept, area = total(view.kept(thresholds.codes)), np.maximum(pixels, 1)
    found = np.zeros(len(view.names))  # figure to sort by
    if sort.kind == "conflict":
        found = total(view.conflict(thresholds.codes))
    elif sort.kind == "uncertain":
        found = total(view.doubt) / area
    elif sort.kind == "drop":
        found = total(view.kept(sort.low)) - total(view.kept(sort.high))
    keys = {"name": np.array(view.names, object), "coverage": kept / area, "conflict": -found / area}
    order = np.argsort(keys.get(sort.kind, -found), kind="stable")  # ties stay in the store's order
    order = order[_matching(view, query, pixels, reviewed)[order]]
    rows = []
    for i in order[offset : offset + limit]:
        row: dict[str, Any] = {
            "name": view.names[i],
            "city": view.statistics.cities[i],
            "pixels": int(pixels[i]),
            "kept": int(kept[i]),
            "kept_share": _share(int(kept[i]), int(pixels[i])),
            "review": reviewed.get(view.names[i], ""),
        }
        if sort.kind in ("conflict", "drop", "uncertain"):
            row[sort.kind] = round(float(found[i]), 6) if sort.kind == "uncertain" else int(found[i])
        rows.append(row)
    return len(order), rows
