"""An audit: kept pixels drawn at random per class, judged by a person, turned into intervals.

Each class is a stratum. Within it pixels are drawn independently and uniformly from all kept pixels of the store. So
the answers are independent, and the binomial interval of a class is exact however the errors cluster.
The file `<store>.audit.json` holds draw, answers and results; it is rewritten after each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from hmsa_core.io.atomic import digest, write_json
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.intervals import Stratum, clopper_pearson, stratified
from pipeline.review.spot_check import VERDICTS, ClassId, Code, Item, SpotCheck, Strict, judged, ranks
from pipeline.review.stats import Thresholds
from pipeline.review.view import StoreView

LIMIT = 500  # pixels per class


class _Stratum(Strict):
    class_id: int = ClassId
    name: str
    kept: int
    drawn: int
    code: int = Code
    threshold: str


class _Audit(Strict):
    id: str
    store: str
    codes: list[int] = Field(max_length=NUM_CODES)
    strata: list[_Stratum]
    items: list[Item]


class Audit(SpotCheck):
    """One drawn sample with the answers so far."""

    KIND, SCHEMA = "audit", _Audit
    FORMAT, VERSION = "hmsa-click-audit", 1
    WHAT, ANEW = "audit", "draw a new audit"

    @classmethod
    def draw(
        cls, view: StoreView, thresholds: Thresholds, *, per_class: int, seed: int, classes: Sequence[int] = ()
    ) -> Audit:
        """Draw `per_class` kept pixels of each class (of `classes`, default all); the same seed draws the same.

        Raises:
            ConfigError: a size out of range, or nothing is kept.
        """
        if not 1 <= per_class <= LIMIT:
            raise ConfigError(f"{per_class} pixels per class: expected 1 to {LIMIT}")
        wanted = sorted(set(classes)) or list(range(view.classes.num_classes))
        kept = view.kept(thresholds.codes)
        items: list[dict[str, Any]] = []
        strata = []
        for c, total in ((c, int(kept[:, c].sum())) for c in wanted if kept[:, c].any()):
            # Not sorted: the page shows pixels in this order, so who stops midway has judged a random sample as well.
            drawn = ranks(kept[:, c], np.random.default_rng([seed, c]).integers(0, total, per_class))
            stratum = {"class": c, "name": view.classes.classes[c], "kept": total, "drawn": per_class}
            strata.append({**stratum, "code": int(thresholds.codes[c]), "threshold": thresholds.text(c)})
            items += [{"name": view.names[image], "class": c, "rank": rank, "verdict": None} for image, rank in drawn]
        if not items:
            raise ConfigError("nothing is kept at these thresholds: there is no pixel to judge")
        body = {"format": cls.FORMAT, "version": cls.VERSION}
        body |= {"store": view.digest, "teacher": view.lineage.get("teacher")}
        body |= {"seed": seed, "per_class": per_class, "codes": thresholds.codes.tolist()}
        body |= {
            "thresholds": [thresholds.text(c) for c in range(len(thresholds.codes))],
            "strata": strata,
            "items": items,
        }
        return cls({"id": digest(body)[:16], **body})

    def save(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.to_json())

    def low(self, item: dict[str, Any]) -> int:
        """Smallest code of the pixels among which an item was drawn: that of the item's class."""
        return int(self.value["codes"][item["class"]])

    def results(self) -> list[dict[str, Any]]:
        """Per class: answers, precision and its exact 95 % interval; "can't tell" counts for neither side."""
        rows = []
        for stratum in self.value["strata"]:
            verdicts = [i["verdict"] for i in self.items if i["class"] == stratum["class"]]
            right, wrong, unsure = (verdicts.count(v) for v in VERDICTS)
            n = right + wrong
            low, high = clopper_pearson(right, n)
            row = {k: stratum[k] for k in ("class", "name", "kept", "drawn", "threshold")}
            row |= {"right": right, "wrong": wrong, "unsure": unsure, "precision": right / n if n else None}
            careful = right / (n + unsure) if n + unsure else None
            rows.append(row | {"low": low, "high": high, "precision_if_unsure_is_wrong": careful})
        return rows

    def overall(self) -> dict[str, Any] | None:
        """Precision over all judged classes, weighted by the pixels that each class keeps; None without an answer."""
        strata = [Stratum(r["right"], r["right"] + r["wrong"], float(r["kept"])) for r in self.results()]
        share = stratified(strata)
        return share and {
            **dict(zip(("precision", "low", "high"), share, strict=True)),
            "answers": sum(s.n for s in strata if s.weight > 0),
            "all_classes_answered": all(s.n for s in strata),
            "method": "stratified by class; Korn-Graubard with Clopper-Pearson, 95 %",
        }

    def judged(self, name: str, code: int) -> tuple[int, int]:
        """Number of decided answers about pixels of a class from code `code` on, and number of "wrong" ones among them.

        No answer counts where the audit drew from a higher code on: its pixels are no sample of all that `code` keeps.
        """
        of_name = [s["class"] for s in self.value["strata"] if s["name"] == name]
        right = [is_right for c in of_name for is_right in judged(self.answers(), c, code)]
        return len(right), right.count(False)

    def to_json(self) -> dict[str, Any]:
        """The file's content, results included."""
        return {**self.value, "results": self.results(), "overall": self.overall()}
