"""Figures of a store under given thresholds: one function for the terminal, the API and the page's lists.

Everything comes from the store's sidecar tables; no pixel is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.codes import NUM_CODES
from pipeline.inspector.cuts import Cuts, code_of
from pipeline.inspector.precision import Precision, PrecisionSources
from pipeline.inspector.view import StoreView

__all__ = ["ImageQuery", "Sort", "image_rows", "parse_sort", "store_stats"]

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
    low, high = (code_of(edge) for edge in edges)
    if low > high:
        raise ConfigError(f"sort {text!r}: the first threshold must not exceed the second")
    return Sort(kind, low, high)


@dataclass(frozen=True)
class ImageQuery:
    """Which images are listed, and in which order."""

    sort: Sort = Sort("name")
    class_id: int | None = None
    text: str = ""
    city: str = ""
    review: str = ""  # "", "flag", "accept" or "none"


def _share(part: float, whole: float) -> float | None:
    return round(100.0 * part / whole, 4) if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _only(codes: NDArray[np.int64], class_id: int) -> NDArray[np.int64]:
    """Cuts that withhold every other class."""
    only = np.full_like(codes, NUM_CODES)
    only[class_id] = codes[class_id]
    return only


def _precision_json(found: Precision | None) -> dict[str, Any]:
    if found is None:
        return {
            "precision": None,
            "precision_low": None,
            "precision_high": None,
            "precision_source": None,
            "marginal_precision": None,
        }
    rounded = {
        key: _rounded(value)
        for key, value in (
            ("precision", found.value),
            ("precision_low", found.low),
            ("precision_high", found.high),
            ("marginal_precision", found.marginal),
        )
    }
    return {**rounded, "precision_source": found.source}


def store_stats(view: StoreView, cuts: Cuts, sources: PrecisionSources, class_id: int | None = None) -> dict[str, Any]:
    """What the cuts keep: totals and one row a class, as plain JSON.

    Shares are per cent. `coverage` is kept / predicted as that class; `kept_share` is kept / all pixels.
    `marginal_precision` is the precision of the pixels exactly at the cut: what the last step bought.
    """
    totals = view.totals
    keeps = np.arange(NUM_CODES)[None, :] >= cuts.codes[:, None]
    kept = np.where(keeps, totals, 0).sum(axis=1)
    chosen = range(view.classes.num_classes) if class_id is None else [class_id]
    known = sources.of_classes(cuts.codes)
    rows = []
    for c in chosen:
        predicted = int(totals[c].sum())
        rows.append(
            {
                "id": c,
                "name": view.classes.classes[c],
                "threshold": cuts.edge(c),
                "code": int(cuts.codes[c]),
                "status": cuts.statuses[c],
                "predicted": predicted,
                "kept": int(kept[c]),
                "coverage": _share(int(kept[c]), predicted),
                **_precision_json(known[c]),
                "expected_precision": _rounded(sources.expected(_only(cuts.codes, c))),
            }
        )
    whole = int(view.pixels.sum())
    all_kept = int(sum(row["kept"] for row in rows))
    found = sources.overall(cuts.codes, known) if class_id is None else known[class_id]
    shown = cuts.codes if class_id is None else _only(cuts.codes, class_id)
    return {
        "store": str(view.path),
        "kind": view.kind,
        "images": len(view.names),
        "threshold": cuts.threshold,
        "policy": cuts.base if cuts.policy is not None else None,
        "pixels": whole,
        "kept": all_kept,
        "kept_share": _share(all_kept, whole),
        **_precision_json(found),
        "expected_precision": _rounded(sources.expected(shown)),
        "classes": rows,
    }


def _over_classes(counts: NDArray[Any], class_id: int | None) -> NDArray[Any]:
    return np.asarray(counts.sum(axis=1) if class_id is None else counts[:, class_id])


def _order(view: StoreView, query: ImageQuery, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Positions of all images, the ones to look at first coming first; ties in the store's order."""
    pixels = np.maximum(columns["pixels"], 1)
    keys: dict[str, NDArray[Any]] = {
        "coverage": columns["kept"] / pixels,
        "conflict": -columns["conflict"] / pixels,
        "uncertain": -columns["doubt"] / pixels,
        "drop": -columns["drop"],
    }
    if query.sort.kind == "name":
        return np.asarray(np.argsort(np.array(view.names, object), kind="stable"), np.int64)
    return np.asarray(np.argsort(keys[query.sort.kind], kind="stable"), np.int64)


def _matching(
    view: StoreView, query: ImageQuery, pixels: NDArray[Any], statuses: Mapping[str, str]
) -> NDArray[np.bool_]:
    chosen = np.ones(len(view.names), bool)
    if query.class_id is not None:
        chosen &= pixels > 0
    if query.text:
        wanted = query.text.lower()
        chosen &= np.fromiter((wanted in name.lower() for name in view.names), bool, len(view.names))
    if query.city:
        chosen &= np.array(view.statistics.cities, object) == query.city
    if query.review:
        want = "" if query.review == "none" else query.review
        chosen &= np.fromiter((statuses.get(name, "") == want for name in view.names), bool, len(view.names))
    return chosen


def image_rows(
    view: StoreView,
    cuts: Cuts,
    query: ImageQuery,
    *,
    offset: int = 0,
    limit: int = 100,
    statuses: Mapping[str, str] | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Number of matching images and one page of them.

    With a class, all figures (pixels, kept, conflict, ...) are of that class alone, and images without it are
    left out. `uncertain` is the mean of 1 - confidence; `drop` the pixels lost between the two thresholds.
    """
    c, sort = query.class_id, query.sort
    reviewed = statuses or {}
    pixels = view.pixels if c is None else _over_classes(view.predicted, c)
    columns = {"pixels": pixels, "kept": _over_classes(view.kept(cuts.codes), c)}
    zeros = np.zeros(len(view.names), np.int64)
    columns["conflict"] = _over_classes(view.conflict(cuts.codes), c) if sort.kind == "conflict" else zeros
    columns["doubt"] = _over_classes(view.doubt, c) if sort.kind == "uncertain" else zeros
    columns["drop"] = zeros
    if sort.kind == "drop":
        columns["drop"] = _over_classes(view.kept(sort.low), c) - _over_classes(view.kept(sort.high), c)
    order = _order(view, query, columns)
    order = order[_matching(view, query, pixels, reviewed)[order]]
    rows = []
    for i in order[offset : offset + limit]:
        name = view.names[i]
        here = int(pixels[i])
        row: dict[str, Any] = {
            "name": name,
            "city": view.statistics.cities[i],
            "pixels": here,
            "kept": int(columns["kept"][i]),
            "kept_share": _share(int(columns["kept"][i]), here),
            "review": reviewed.get(name, ""),
        }
        if sort.kind == "conflict":
            row["conflict"] = int(columns["conflict"][i])
        if sort.kind == "uncertain":
            row["uncertain"] = round(float(columns["doubt"][i]) / max(here, 1), 6)
        if sort.kind == "drop":
            row["drop"] = int(columns["drop"][i])
        rows.append(row)
    return len(order), rows
