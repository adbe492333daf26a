"""From a folder of files to an index: scan, pair, check every file by content, assign roles, find duplicates.

One bad file is a quarantine row, and the run goes on. The result does not depend on the number of workers, on clocks
or on the folder's place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hmsa_core.data.checks import Checked, Task, Verifier
from hmsa_core.data.decode import holds_train_ids
from hmsa_core.data.found import Found, Refused, Scan
from hmsa_core.data.index import KINDS, Index, QuarantineRow, Sample, read_quarantine, write_quarantine
from hmsa_core.data.layouts import scan
from hmsa_core.data.near import hash_values, near_duplicates
from hmsa_core.data.roles import assign_blocks, assign_roles
from hmsa_core.data.sampling import Centroids
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.tables import Rows
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.engine import HERE, Engine
from hmsa_core.io.errors import InputError
from hmsa_core.io.remote import ahead
from hmsa_core.taxonomy import ClassTable

CHECKS = 4  # raise this number when a check changes: earlier indexes are then not reused
_MOST_PAIRS = 1_000_000
Progress = Callable[[int, int], None]


@dataclass
class Summary:
    """Counts of one root, for people and for the report (`summary.json` holds one a root)."""

    root: str
    layout: str = ""
    images: int = 0
    by_role: dict[str, int] = field(default_factory=dict)
    by_kind: dict[str, int] = field(default_factory=dict)
    by_split: dict[str, int] = field(default_factory=dict)
    cities: int = 0
    blocks: dict[str, int] = field(default_factory=dict)  # by role
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    refused_images: int = 0
    turned: int = 0  # labelled images that EXIF data turn, of those that were decoded
    centroids: dict[str, int] = field(default_factory=dict)  # by class name
    near_duplicates: dict[str, int] = field(default_factory=dict)  # pairs by "role-role"
    near_duplicate_examples: list[list[str]] = field(default_factory=list)  # pairs of different roles first
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object of the data's facts, without facts about the run."""
        return {key: value for key, value in asdict(self).items() if key != "turned"}

    def all_notes(self) -> list[str]:
        """Return notes for the user, also about this run."""
        turned = (
            f"{self.turned} labelled images have an EXIF rotation and are read upright: so must their label maps be"
        )
        return [*self.notes, turned] if self.turned else self.notes


def build(
    source: SourceSpec,
    roles: RolesSpec,
    out: str | Path,
    *,
    engine: Engine = HERE,
    tile: int = 1024,
    min_pixels: int = 0,
    previous: str | Path | None = None,
    only: Container[str] = (),
    progress: Progress | None = None,
) -> Summary:
    """Index one data set into the folder `out`.

    Writes `<name>.parquet`, `centroids-<name>.parquet` (of `learn` images), and this root's part of
    `quarantine.parquet` and `summary.json`, other roots' parts are kept.

    Args:
        source, roles: sections of the settings.
        out: folder of the results.
        engine: processes that check files. They are fresh interpreters, so a script that requests more than one process
            needs the usual `if __name__ == "__main__":`.
        tile, min_pixels: side of the tiles for class centroids, and fewest pixels of a class in one.
        previous: an earlier `out` folder: files with the same digest are not decoded again.
        only: image files below the root to index; empty: all.
        progress: called with (done, total).

    Raises:
        LayoutError: a whole folder is missing or holds nothing usable.
        InputError: more than `source.max_bad` of the images, and than `source.max_bad_images`, are refused; each of
            them is in the quarantine table. Or maps of trainIds lie where ids are read.
    """
    root = _Root(Path(out), source, scan(source), {"tile": tile, "min_pixels": min_pixels})
    if only:
        root.scanned.keep(only)
    found = _unique(root.scanned)  # first: roles and blocks depend on names
    chosen = assign_roles(found, roles)
    earlier = _Earlier.load(Path(previous), root) if previous is not None else _Earlier()
    tasks = map(earlier.task, found, chosen, assign_blocks(found, chosen, source))
    verifier = Verifier(Path(source.root), root.classes, source.max_pixels, tile, min_pixels)
    checked = _Collected(root.refused)
    here = ahead(tasks, verifier.files)
    with closing(engine.map(verifier, here, what="checks images", batch=4)) as results:
        samples = Rows.of(Sample, checked.samples(_counted(results, len(found), progress)))
    samples, duplicates = _drop_duplicates(samples)
    root.refused = root.scanned.refused + root.refused + duplicates
    summary = _summarise(root, samples)
    summary.turned = checked.turned
    _check_share(root, summary)
    _check_labels(root, {name for name, label in found.values("name", "label") if label}, samples)
    out_names = {r.name for r in duplicates}
    centroids = Centroids.collect((name, values) for name, values in checked.centroids if name not in out_names)
    counts = centroids.counts(root.classes.num_classes)
    summary.centroids = {name: int(n) for name, n in zip(root.classes.classes, counts, strict=True)}
    _check_train_ids(root, summary, samples)
    _near(samples, source.near_duplicate_bits, summary)
    _write(root, samples, centroids, summary)
    return summary


def write_empty(out: str | Path, name: str, classes: ClassTable, note: str) -> Summary:
    """Write the index of a root that is not configured (no pretraining set): no rows, and a note with the reason."""
    root = _Root(Path(out), SourceSpec(kind="folder", name=name), Scan("", classes), {"tile": 0, "min_pixels": 0})
    summary = Summary(name, notes=[note])
    _write(root, Rows.of(Sample, ()), Centroids(), summary)
    return summary


@dataclass
class _Root:
    """One data set during indexing."""

    out: Path
    source: SourceSpec
    scanned: Scan
    grid: dict[str, int]  # settings of the centroids
    refused: list[Refused] = field(default_factory=list)

    @property
    def classes(self) -> ClassTable:
        return self.scanned.classes


@dataclass
class _Collected:
    """Results of the checks except the samples, which are written at once."""

    refused: list[Refused]
    centroids: list[tuple[str, NDArray[np.int32]]] = field(default_factory=list)
    turned: int = 0

    def samples(self, results: Iterable[Checked]) -> Iterator[Sample]:
        for checked in results:
            self.refused += checked.refused
            self.turned += checked.is_turned
            if checked.sample is not None:
                if checked.centroids is not None:
                    self.centroids.append((checked.sample.name, checked.centroids))
                yield checked.sample


def _unique(scanned: Scan) -> Rows[Found]:
    """Found images sorted by name. Of images with the same name, all but the first by path are refused."""
    found, scanned.found = scanned.found, []
    for key in ("image", "name"):  # one after the other: pairs would need memory
        found.sort(key=attrgetter(key))
    unique: list[Found] = []
    for f in found:
        if unique and f.name == unique[-1].name:
            detail = f"{unique[-1].image} has the same name"
            scanned.refuse(f.name, f.image, "image", f.split, "duplicate-name", detail)
        else:
            unique.append(f)
    return Rows.of(Found, unique)


@dataclass
class _Earlier:
    """Contents of an earlier index, if it was made with the same checks and settings."""

    samples: Iterator[Sample] = field(default_factory=lambda: iter(()))  # by name
    centroids: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    at: Sample | None = None

    @classmethod
    def load(cls, folder: Path, root: _Root) -> _Earlier:
        path = folder / f"{root.source.name}.parquet"
        if not path.is_file():
            return cls()
        index = Index.load(path)
        if index.extra.get("checks") != CHECKS or index.classes != root.classes:
            return cls()
        earlier = cls(iter(index.samples))
        path = folder / f"centroids-{root.source.name}.parquet"
        if path.is_file() and (centroids := Centroids.load(path)).settings == root.grid:
            none = np.zeros((0, 4), np.int32)
            learn = index.select(roles=("learn",)).values("name")
            earlier.centroids = dict.fromkeys(learn, none) | centroids.split()
        return earlier

    def task(self, found: Found, role: str, block: str) -> Task:
        """Return the task of one image with its earlier results; callers go in the order of names."""
        while self.at is None or self.at.name < found.name:
            if (at := next(self.samples, None)) is None:
                break
            self.at = at
        known = self.at if self.at is not None and self.at.name == found.name else None
        return Task(found, role, block, known, self.centroids.get(found.name))


def _counted(results: Iterable[Checked], total: int, progress: Progress | None) -> Iterator[Checked]:
    for done, result in enumerate(results, 1):
        yield result
        if progress:
            progress(done, total)


# ---- Duplicates


def _drop_duplicates(samples: Rows[Sample]) -> tuple[Rows[Sample], list[Refused]]:
    """Keep one image of each digest: the one that is judged, else the one with the best label, else the first."""
    roles = ("report", "calibrate", "learn", "unlabelled", "guard")
    _, inverse, counts = np.unique(hash_values(samples.values("image_sha256")), return_inverse=True, return_counts=True)
    places = np.flatnonzero(counts[inverse] > 1)  # places of images that may be copies
    kept: dict[str, Sample] = {}
    suspects = list(samples.at(places))
    for s in sorted(suspects, key=lambda s: (roles.index(s.role), KINDS.index(s.kind), s.name)):
        kept.setdefault(s.image_sha256, s)
    out = [(place, s) for place, s in zip(places.tolist(), suspects, strict=True) if kept[s.image_sha256] is not s]
    refused = [
        Refused(s.name, s.image, "image", s.split, "duplicate", f"duplicate of {kept[s.image_sha256].name}")
        for _, s in out
    ]
    return samples.at(np.delete(np.arange(len(samples)), [place for place, _ in out])) if out else samples, refused


def _near(samples: Rows[Sample], bits: int, summary: Summary) -> None:
    found = near_duplicates(hash_values(samples.values("phash")), bits, limit=_MOST_PAIRS)
    if len(found) == _MOST_PAIRS:
        summary.notes.append(f"more than {_MOST_PAIRS} pairs of near duplicates; the rest is not counted")
    roles = [intern(role) for role in samples.values("role")]
    summary.near_duplicates = _count("-".join(sorted((roles[i], roles[j]))) for i, j, _ in found)
    # Pairs across roles matter: an image may judge a model that learned from its near copy.
    found.sort(key=lambda pair: (roles[pair[0]] == roles[pair[1]], pair[2], pair))  # an index sorts by name
    names = samples.column("name")
    summary.near_duplicate_examples = [[names[i].as_py(), names[j].as_py()] for i, j, _ in found[:20]]


# ---- Counting, and when too much is refused


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _summarise(root: _Root, samples: Rows[Sample]) -> Summary:
    blocks = pa.table({name: samples.column(name) for name in ("role", "block")}).group_by(["role", "block"])
    return Summary(
        root.source.name,
        root.scanned.layout,
        len(samples),
        _count(samples.values("role")),
        _count(samples.values("kind")),
        _count(samples.values("split")),
        len(set(samples.values("city")) - {""}),
        _count(blocks.aggregate([])["role"].to_pylist()),
        _count(r.reason for r in root.refused),
        _lost(root.refused, samples),
        notes=list(root.scanned.notes),
    )


def _lost(refused: Sequence[Refused], samples: Rows[Sample]) -> int:
    """How many images cannot be used; a copy of another image, or a label without one, is no loss."""
    no_loss = {("image", "duplicate"), ("label", "unpaired"), ("coarse", "unpaired"), ("image", "duplicate-name")}
    namesakes = sum((r.part, r.reason) == ("image", "duplicate-name") for r in refused)  # their names are in use
    lost = {r.name for r in refused if (r.part, r.reason) not in no_loss}
    return namesakes + len(lost.difference(samples.values("name")))


def _check_share(root: _Root, summary: Summary) -> None:
    """Raise InputError if too many images are refused (`SourceSpec.max_bad`); the quarantine table lists each."""
    source, refused = root.source, root.refused
    bad, total = summary.refused_images, summary.refused_images + summary.images
    if _is_too_many(source, bad, total):
        _write_refused(root)
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary.refused.items())
        shown = "; ".join(f"{r.path}: {r.reason}{f' ({r.detail})' if r is refused[0] else ''}" for r in refused[:3])
        namesakes = source.kind == "folder" and "duplicate-name" in summary.refused and source.names == "stem"
        raise InputError(
            f"{source.root}: {bad} of {total} images cannot be used ({reasons}), {shown}{' ...' if bad > 3 else ''}; "
            f"allowed are {source.max_bad:.0%}",
            hint="folders whose files have the same names: set `names: path`"
            if namesakes
            else _hint(root, is_all=bad == total),
        )


def _check_labels(root: _Root, labelled: Set[str], samples: Rows[Sample]) -> None:
    """Apply the same limit to images with a fine label (`labelled`): a small share of all may include all of these."""
    copies = {r.name for r in root.refused if (r.part, r.reason) == ("image", "duplicate")}  # names in use
    lost = labelled - copies - {name for name, label in samples.values("name", "label") if label}
    if _is_too_many(root.source, len(lost), len(labelled)) or (labelled and lost == labelled):
        _write_refused(root)
        reasons = ", ".join(f"{n} {reason}" for reason, n in _count(r.reason for r in root.refused).items())
        raise InputError(
            f"{root.source.root}: {len(lost)} of {len(labelled)} images with a fine label cannot be used, the first: "
            f"{min(lost)} ({reasons})",
            hint=_hint(root, is_all=lost == labelled),
        )


def _is_too_many(source: SourceSpec, bad: int, total: int) -> bool:
    few = source.max_bad_images if source.max_bad and bad < total else 0
    return bad > max(source.max_bad * total, few)


def _check_train_ids(root: _Root, summary: Summary, samples: Rows[Sample]) -> None:
    """Raise InputError if no label map of a `learn` image holds an id above the largest trainId: these are trainIds.

    Each trainId is a valid id of another class.
    """
    classes = root.classes
    if not classes.has_file_ids or not any(summary.centroids.values()):
        return
    last = classes.num_classes  # often void
    above = [name for name, file_id in zip(classes.classes, classes.train_to_id, strict=True) if file_id > last]
    learned = [label for role, label in samples.values("role", "label") if role == "learn" and label]
    maps = [label for label in learned if not holds_train_ids(label) and not label.lower().endswith(".json")]
    if maps and above and not any(summary.centroids[name] for name in above):
        raise InputError(
            f"{root.source.root}: no label map of {len(maps)} learning images holds an id above {last}, the first: "
            f"{maps[0]}: do they hold trainIds? They would be read as ids of {classes.name}",
            hint=_hint_train_ids(root),
        )


def _hint_train_ids(root: _Root) -> str:
    if root.source.kind != "folder":
        return "name maps of trainIds ..._labelTrainIds.png"
    last = root.classes.num_classes - 1
    return f"for maps of trainIds write a class file of your own with these classes as 0..{last}, named in `classes`"


def _hint(root: _Root, *, is_all: bool) -> str:
    more = "" if is_all else ", or raise `max_bad`"
    hint = f"repair the files (all of them: {root.out / 'quarantine.parquet'}){more}"
    wrong_ids = any(r.reason == "ids-out-of-range" and not holds_train_ids(r.path) for r in root.refused)
    return f"{hint}; {_hint_train_ids(root)}" if root.classes.has_file_ids and wrong_ids else hint


# ---- Writing


def _write(root: _Root, samples: Rows[Sample], centroids: Centroids, summary: Summary) -> None:
    name, figures = root.source.name, root.out / "summary.json"
    roots = dict(read_json(figures)) if figures.is_file() else {}
    centroids.write(root.out / f"centroids-{name}.parquet", **root.grid)
    _write_refused(root)
    write_json(figures, {**roots, name: summary.to_json()})
    # Last: where an index exists, the other files exist.
    Index.write(root.out / f"{name}.parquet", samples, root.classes, name, checks=CHECKS)


def _write_refused(root: _Root) -> None:
    """Replace one root's rows of the quarantine table."""
    path, name = root.out / "quarantine.parquet", root.source.name
    others = [r for r in read_quarantine(path) if r.root != name] if path.is_file() else []
    write_quarantine(path, others + [QuarantineRow(**asdict(r), root=name) for r in root.refused])
