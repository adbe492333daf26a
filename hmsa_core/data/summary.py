"""What `prepare` counts for people: who does what, what was refused and why, and when that is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hmsa_core.data.decode import holds_train_ids
from hmsa_core.data.index import QuarantineRow, Sample, read_quarantine, write_quarantine
from hmsa_core.data.layout import Refused, Scan
from hmsa_core.data.spec import SourceSpec
from hmsa_core.io.errors import InputError
from hmsa_core.taxonomy import ClassTable

__all__ = ["Summary", "check_labels", "check_share", "check_train_ids", "summarise", "write_refused"]


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
    reused: int = 0  # images that an earlier index vouched for
    centroids: dict[str, int] = field(default_factory=dict)  # by class name
    near_duplicates: dict[str, int] = field(default_factory=dict)  # pairs by "role-role"
    near_duplicate_examples: list[list[str]] = field(default_factory=list)  # pairs of different roles first
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; without `reused`, which tells about the run and not about the data."""
        return {key: value for key, value in asdict(self).items() if key != "reused"}


def summarise(source: SourceSpec, scanned: Scan, samples: Sequence[Sample], refused: Sequence[Refused]) -> Summary:
    """Count a data set's images by role, kind and split, and what was refused by reason."""

    def count(key: Callable[[Any], str], rows: Iterable[Any]) -> dict[str, int]:
        return dict(sorted(Counter(key(r) for r in rows).items()))

    block_roles = {(s.role, s.block) for s in samples}
    return Summary(
        source.name,
        scanned.layout,
        len(samples),
        count(lambda s: s.role, samples),
        count(lambda s: s.kind, samples),
        count(lambda s: s.split, samples),
        len({s.city for s in samples} - {""}),
        count(lambda b: b[0], block_roles),
        count(lambda r: r.reason, refused),
        _lost(refused, {s.name for s in samples}),
        notes=list(scanned.notes),
    )


def _lost(refused: Sequence[Refused], used: set[str]) -> int:
    """How many images cannot be used; a copy of another image, or a label without one, is no loss."""
    no_loss = {("image", "duplicate"), ("label", "unpaired"), ("coarse", "unpaired"), ("image", "duplicate-name")}
    namesakes = sum((r.part, r.reason) == ("image", "duplicate-name") for r in refused)  # others have their names
    return namesakes + len({r.name for r in refused if (r.part, r.reason) not in no_loss} - used)


def check_share(
    source: SourceSpec, classes: ClassTable, summary: Summary, refused: Sequence[Refused], out: Path
) -> None:
    """InputError when too many images are refused (`SourceSpec.max_bad`); each is in `out`/quarantine.parquet then."""
    bad, total = summary.refused_images, summary.refused_images + summary.images
    if _is_too_many(source, bad, total):
        write_refused(out, source.name, refused)
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary.refused.items())
        shown = "; ".join(f"{r.path}: {r.reason}" for r in refused[:3])
        namesakes = source.kind == "folder" and "duplicate-name" in summary.refused and source.names == "stem"
        raise InputError(
            f"{source.root}: {bad} of {total} images cannot be used ({reasons}), {shown}{' ...' if bad > 3 else ''}; "
            f"allowed are {source.max_bad:.0%}",
            hint="folders whose files have the same names: set `names: path`"
            if namesakes
            else _mend(out, source, classes, refused),
        )


def check_train_ids(source: SourceSpec, classes: ClassTable, summary: Summary, samples: Sequence[Sample]) -> None:
    """Maps of trainIds hold valid ids of other classes (2 is void, 7 is road): nothing else would tell.

    Raises:
        InputError: label files should hold ids, and no learning one shows a class whose id is above all trainIds.
    """
    if not classes.has_own_ids or not any(summary.centroids.values()):
        return
    last = classes.num_classes  # often void
    above = [name for name, own in zip(classes.classes, classes.train_to_id, strict=True) if own > last]
    learned = [s.label for s in samples if s.role == "learn" and s.label]
    maps = [label for label in learned if not holds_train_ids(label) and not label.lower().endswith(".json")]
    if maps and above and not any(summary.centroids[name] for name in above):
        raise InputError(
            f"{source.root}: no label map of {len(maps)} learning images holds an id above {last}, the first: "
            f"{maps[0]}: do they hold trainIds? They would be read as ids of {classes.name}",
            hint=_mend_train_ids(source, classes),
        )


def _mend_train_ids(source: SourceSpec, classes: ClassTable) -> str:
    if source.kind != "folder":
        return "name maps of trainIds ..._labelTrainIds.png"
    last = classes.num_classes - 1
    return f"for maps of trainIds write a class file of your own with these classes as 0..{last}, named in `classes`"


def check_labels(
    source: SourceSpec,
    classes: ClassTable,
    labelled: Set[str],
    samples: Sequence[Sample],
    refused: Sequence[Refused],
    out: Path,
) -> None:
    """The same of the images that have a fine label: a small share of all images may be every one of them.

    Args:
        source: the data set.
        classes: its classes.
        labelled: names of the images that were found with a fine label.
        samples: what can be used.
        refused: what cannot.
        out: folder of the quarantine table.
    """
    copies = {r.name for r in refused if (r.part, r.reason) == ("image", "duplicate")}  # of images that are used
    lost = labelled - copies - {s.name for s in samples if s.label}
    if _is_too_many(source, len(lost), len(labelled)) or (labelled and lost == labelled):
        write_refused(out, source.name, refused)
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(Counter(r.reason for r in refused).items()))
        raise InputError(
            f"{source.root}: {len(lost)} of {len(labelled)} images with a fine label cannot be used, the first: "
            f"{min(lost)} ({reasons})",
            hint=_mend(out, source, classes, refused),
        )


def _is_too_many(source: SourceSpec, bad: int, total: int) -> bool:
    few = source.max_bad_images if source.max_bad and bad < total else 0
    return bad > max(source.max_bad * total, few)


def _mend(out: Path, source: SourceSpec, classes: ClassTable, refused: Sequence[Refused]) -> str:
    told = f"mend the files (all of them: {out / 'quarantine.parquet'}), or raise `max_bad`"
    if classes.has_own_ids and any(r.reason == "ids-out-of-range" and not holds_train_ids(r.path) for r in refused):
        told += f"; {_mend_train_ids(source, classes)}"
    return told


def write_refused(out: Path, root: str, refused: Sequence[Refused]) -> None:
    """Replace one root's rows of `out`/quarantine.parquet."""
    path = out / "quarantine.parquet"
    others = [r for r in read_quarantine(path) if r.root != root] if path.is_file() else []
    write_quarantine(path, others + [QuarantineRow(**asdict(r), root=root) for r in refused])
