"""Click audit: kept pixels drawn at random per class, judged by a person, turned into intervals.

Each class is a stratum. Within it pixels are drawn independently and uniformly from all kept pixels of the store. So
the answers are independent, and the binomial interval of a class is exact however the errors cluster.
The file `<store>.audit.json` holds draw, answers and results; it is rewritten after each answer.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest, read_json, write_json
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.records import saving, stamp_of
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.intervals import clopper_pearson
from pipeline.review.precision import AuditAnswer, Stratum, stratified
from pipeline.review.stats import Cuts
from pipeline.review.view import StoreView

VERDICTS = ("right", "wrong", "unsure")
FORMAT, VERSION = "hmsa-click-audit", 1
LIMIT = 500  # pixels a class
_NEEDED = {"id": str, "store": str, "codes": list, "strata": list, "items": list}
_OF_STRATUM = {"class": int, "name": str, "kept": int, "drawn": int, "code": int, "threshold": str}
_OF_ITEM = {"name": str, "class": int, "rank": int, "verdict": str | None}


def audit_path(store: str | os.PathLike[str]) -> Path:
    """Where an audit is kept: beside the store, for DVC empties the folders of measured policies and watches others."""
    base = Path(store)
    return base.with_name(f"{base.name}.audit.json")


class Audit:
    """One drawn sample with the answers so far; `value` is what the file holds."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.id: str = value["id"]

    @classmethod
    def draw(cls, view: StoreView, cuts: Cuts, *, per_class: int, seed: int, classes: Sequence[int] = ()) -> Audit:
        """Draw `per_class` kept pixels of each class (of `classes`, default all); the same seed draws the same.

        Raises:
            ConfigError: a size out of range, or nothing is kept.
        """
        if not 1 <= per_class <= LIMIT:
            raise ConfigError(f"{per_class} pixels per class: expected 1 to {LIMIT}")
        wanted = sorted(set(classes)) or list(range(view.classes.num_classes))
        kept = view.kept(cuts.codes)
        items: list[dict[str, Any]] = []
        strata = []
        for c, total in ((c, int(kept[:, c].sum())) for c in wanted if kept[:, c].any()):
            # Not sorted: the page asks in this order, and who stops midway has judged a random sample as well.
            drawn = _ranks(kept[:, c], np.random.default_rng([seed, c]).integers(0, total, per_class))
            stratum = {"class": c, "name": view.classes.classes[c], "kept": total, "drawn": per_class}
            strata.append({**stratum, "code": int(cuts.codes[c]), "threshold": cuts.edge(c)})
            items += [{"name": view.names[image], "class": c, "rank": rank, "verdict": None} for image, rank in drawn]
        if not items:
            raise ConfigError("nothing is kept at these thresholds: there is no pixel to judge")
        body = {"format": FORMAT, "version": VERSION, "store": view.digest, "teacher": view.lineage.get("teacher")}
        body |= {"seed": seed, "per_class": per_class, "codes": cuts.codes.tolist()}
        body |= {"thresholds": [cuts.edge(c) for c in range(len(cuts.codes))], "strata": strata, "items": items}
        return cls({"id": digest(body)[:16], **body})

    def located(self, view: StoreView, item: int) -> dict[str, Any]:
        """An item with the position (x, y) and code of its pixel, which is looked up when first needed.

        Raises:
            IntegrityError: the image's maps do not hold what its histogram says.
        """
        if not 0 <= item < len(self.value["items"]):
            raise InputError(f"item {item}: this audit has {len(self.value['items'])}")
        found: dict[str, Any] = self.value["items"][item]
        if "code" not in found:
            label, code = view.read(found["name"])
            where = np.flatnonzero((label == found["class"]) & (code >= self.value["codes"][found["class"]]))
            if found["rank"] >= len(where):
                raise IntegrityError(
                    f"image {found['name']!r}: its maps and its histogram differ", hint="run `autolabel verify`"
                )
            y, x = divmod(int(where[found["rank"]]), code.shape[1])
            found.update(x=x, y=y, code=int(code[y, x]))
        return found

    def answer(self, view: StoreView, item: int, verdict: str) -> None:
        """Record or change the answer to one item."""
        if verdict not in VERDICTS:
            raise InputError(f"verdict {verdict!r}: expected {', '.join(VERDICTS)}")
        self.located(view, item)["verdict"] = verdict

    def results(self) -> list[dict[str, Any]]:
        """Per class: answers, precision and its exact 95 % interval; "can't tell" counts for neither side."""
        rows = []
        for stratum in self.value["strata"]:
            verdicts = [i["verdict"] for i in self.value["items"] if i["class"] == stratum["class"]]
            right, wrong, unsure = (verdicts.count(v) for v in VERDICTS)
            n = right + wrong
            low, high = clopper_pearson(right, n)
            row = {k: stratum[k] for k in ("class", "name", "kept", "drawn", "threshold")}
            row |= {"right": right, "wrong": wrong, "unsure": unsure, "precision": right / n if n else None}
            careful = right / (n + unsure) if n + unsure else None
            rows.append(row | {"low": low, "high": high, "precision_if_unsure_is_wrong": careful})
        return rows

    def overall(self) -> dict[str, Any] | None:
        """Precision over all judged classes, weighted with what each keeps; None without an answer."""
        strata = [Stratum(r["right"], r["right"] + r["wrong"], float(r["kept"])) for r in self.results()]
        share = stratified(strata)
        return share and {
            **dict(zip(("precision", "low", "high"), share, strict=True)),
            "answers": sum(s.n for s in strata if s.weight > 0),
            "all_classes_answered": all(s.n for s in strata),
            "method": "stratified by class; Korn-Graubard with Clopper-Pearson, 95 %",
        }

    @property
    def is_begun(self) -> bool:
        """Whether anybody answered, "can't tell" included."""
        return any(item["verdict"] for item in self.value["items"])

    def answers(self) -> list[AuditAnswer]:
        """Decided answers."""
        decided = (item for item in self.value["items"] if item["verdict"] in ("right", "wrong"))
        return [AuditAnswer(item["class"], item["code"], item["verdict"] == "right") for item in decided]

    def judged(self, name: str, cut: int) -> tuple[int, int]:
        """Decided answers about pixels of a class from this code on, and how many are "wrong".

        None counts where the audit drew from a higher code on: its pixels are no sample of all that `cut` keeps.
        """
        classes = {s["class"] for s in self.value["strata"] if s["name"] == name and s["code"] <= cut}
        right = [a.right for a in self.answers() if a.class_id in classes and a.code >= cut]
        return len(right), right.count(False)

    def audited(self, num_classes: int) -> list[int]:
        """Per class the code from which on pixels were drawn; 256 for classes that were not."""
        codes = [NUM_CODES] * num_classes
        for stratum in self.value["strata"]:
            codes[stratum["class"]] = stratum["code"]
        return codes

    def to_json(self) -> dict[str, Any]:
        """The file's content, results included."""
        return {**self.value, "results": self.results(), "overall": self.overall()}


def _damage(value: dict[str, Any]) -> str:
    """What a file lacks of an audit, "" where all is there."""
    if lacking := _lacking(value, _NEEDED):
        return f"its {lacking!r} is missing or of another kind"
    for key, needed in (("strata", _OF_STRATUM), ("items", _OF_ITEM)):
        for number, row in enumerate(value[key]):
            also = {"code": int} if isinstance(row, dict) and row.get("verdict") else {}  # of an answered pixel
            if lacking := _lacking(row, {**needed, **also}):
                return f"{lacking!r} of entry {number} of its {key!r} is missing or of another kind"
    return ""


def _lacking(value: object, needed: Mapping[str, Any]) -> str:
    """The first key that is missing or of another kind, "" where there is none."""
    row = value if isinstance(value, dict) else {}
    return next((key for key, kind in needed.items() if key not in row or not isinstance(row[key], kind)), "")


def _ranks(kept: NDArray[np.int64], drawn: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(image, rank among its kept pixels) of positions in the row of all kept pixels of a class."""
    ends = np.cumsum(kept)
    images = np.searchsorted(ends, drawn, side="right")
    return list(zip(images.tolist(), (drawn - (ends[images] - kept[images])).tolist(), strict=True))


class AuditFile:
    """The audit beside a policy or store: loads it, draws a new one, records answers."""

    def __init__(self, path: Path, view: StoreView) -> None:
        self.path, self._view, self._lock = path, view, threading.Lock()
        self._seen: tuple[tuple[int, int], Audit | None] | None = None

    def every(self) -> list[Audit]:
        """All audits of the store that was or is here, of whatever labels, in the order in which they were drawn."""
        aside = self.path.parent.glob(f"{glob.escape(self.path.stem)}-*.json")
        found = [kept for path in (*aside, self.path) if (kept := self._kept(path)) is not None]
        return sorted(found, key=lambda audit: (audit.value.get("number", 0), audit.id))

    def _aside(self, audit: Audit) -> Path:
        return self.path.with_name(f"{self.path.stem}-{audit.id}.json")

    def _kept(self, path: Path | None = None) -> Audit | None:
        """What the file holds now, of whatever labels: another server may have written it."""
        path = path or self.path
        if not path.is_file():
            return None
        value = read_json(path)
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise IntegrityError(f"{path}: not a click audit of version {VERSION}")
        if wrong := _damage(value):
            raise IntegrityError(f"{path}: damaged: {wrong}", hint="restore it, or move it away and draw a new audit")
        return Audit({k: v for k, v in value.items() if k not in ("results", "overall")})

    @property
    def current(self) -> Audit | None:
        """The audit of this very store, finished or not, with the answers of all servers."""
        stamp, seen = stamp_of(self.path), self._seen
        if stamp is None:
            return None
        if seen is None or seen[0] != stamp:
            kept = self._kept()
            # Evidence about other labels is not evidence about these.
            self._seen = seen = (stamp, kept if kept is not None and kept.value["store"] == self._view.digest else None)
        return seen[1]

    def start(self, audit: Audit) -> Audit:
        """Keep a new audit; one that was answered, of these labels or others, is put aside under its id, never lost."""
        with self._alone():
            kept = self._kept()
            if kept is None or kept.id != audit.id:
                if kept is not None and kept.is_begun:
                    self._save(kept, self._aside(kept))
                aside = self._kept(self._aside(audit))  # the same draw, answered before
                audit.value["number"] = 1 + max((old.value.get("number", 0) for old in self.every()), default=0)
                kept = audit if aside is None else aside
                self._save(kept, self.path)
            return kept

    def answer(self, audit_id: str, item: int, verdict: str) -> Audit:
        """Record an answer and rewrite the file; what could not be written does not count."""
        with self._alone():
            audit = self._kept()
            if audit is None or audit.value["store"] != self._view.digest:
                raise InputError(f"no audit {audit_id!r} is under way", hint="draw a new one")
            if audit.id != audit_id:
                raise InputError(f"{self.path}: another audit was drawn since", hint="open the audit anew to go on")
            audit.answer(self._view, item, verdict)
            self._save(audit, self.path)
            return audit

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), what=f"audit {self.path}", wait_s=10.0)
        with self._lock, saving(self.path), lock:
            yield

    @staticmethod
    def _save(audit: Audit, path: Path) -> None:
        with saving(path):
            write_json(path, audit.to_json())
