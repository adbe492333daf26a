"""What a checkpoint has learned from, through all its parents: nobody may be judged on these images.

`lineage.json` lies next to `model.json` in a checkpoint folder and lists every image: by the digest of its
bytes, and by what finds near copies (perceptual hash; sequence and frame number). A student inherits the
images of the teacher it starts from and adds the auto-labelled ones. What cannot be known (a parent
without a list) is said in words under `unknown`, never left out in silence. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hmsa_core.data.index import Sample
from hmsa_core.io.atomic import read_json, sha256_file, write_json
from hmsa_core.io.errors import IntegrityError
from hmsa_core.models.checkpoint import read_meta

LINEAGE_FILE = "lineage.json"
_FORMAT, _VERSION = "hmsa-lineage", 1


@dataclass(frozen=True)
class LearnedImage:
    """One image that weights depend on."""

    sha256: str  # of the image file
    name: str
    root: str  # name of the root it was found under
    phash: str  # perceptual hash, 16 hex digits
    sequence: str
    frame: int  # -1 = none
    source: str  # fine | pseudo: which kind of label taught it (fine wins)


@dataclass(frozen=True)
class Lineage:
    """All images behind a set of weights."""

    images: dict[str, LearnedImage] = field(default_factory=dict)  # by SHA-256 of the file
    parents: tuple[str, ...] = ()  # digests of the weights this came from, nearest first
    unknown: tuple[str, ...] = ()  # in words, what could not be traced

    def union(self, other: Lineage) -> Lineage:
        """Both together; `self`'s parents come first."""
        better = {k: image for k, image in other.images.items() if k not in self.images or image.source == "fine"}
        return Lineage(
            self.images | better,
            tuple(dict.fromkeys([*self.parents, *other.parents])),
            tuple(dict.fromkeys([*self.unknown, *other.unknown])),
        )

    def with_parent(self, weights_sha256: str) -> Lineage:
        """The lineage of what is trained from these weights."""
        parents = tuple(dict.fromkeys([weights_sha256, *self.parents]))
        return Lineage(self.images, parents, self.unknown)

    def save(self, path: Path) -> str:
        """Write `lineage.json`; return its SHA-256."""
        rows = [asdict(image) for _, image in sorted(self.images.items())]
        return write_json(path, {"format": _FORMAT, "version": _VERSION, "images": rows, **self._traced}, indent=None)

    @property
    def _traced(self) -> dict[str, list[str]]:
        return {"parents": list(self.parents), "unknown": list(self.unknown)}

    @classmethod
    def load(cls, path: Path) -> Lineage:
        """Read a `lineage.json`; IntegrityError when it is not one."""
        value = read_json(path)
        if value.get("format") != _FORMAT or value.get("version") != _VERSION:
            raise IntegrityError(f"{path}: not a {_FORMAT} file of version {_VERSION}")
        rows = [LearnedImage(**row) for row in value["images"]]
        return cls({row.sha256: row for row in rows}, tuple(value["parents"]), tuple(value["unknown"]))

    def summary(self, file_sha256: str) -> dict[str, Any]:
        """What goes into `model.json`: counts, parents, gaps, and the digest of the list."""
        return {"images": len(self.images), "lineage_sha256": file_sha256, **self._traced}


def learned(samples: Iterable[Sample], *, root: str, source: str) -> Lineage:
    """The lineage of what was trained on these samples alone."""
    images = (LearnedImage(s.image_sha256, s.name, root, s.phash, s.sequence, s.frame, source) for s in samples)
    return Lineage({image.sha256: image for image in images})


def lineage_of_checkpoint(path: Path) -> Lineage:
    """The lineage of a checkpoint's weights (without naming the weights themselves as a parent).

    A checkpoint that never had a list (an imported one) gives an empty lineage that says so.

    Raises:
        IntegrityError: the list is there but not the one that belongs to `model.json`.
    """
    folder = path if path.is_dir() else path.parent
    meta = read_meta(folder)
    file, expected = folder / LINEAGE_FILE, meta["lineage"].get("lineage_sha256")
    if expected is None:
        return Lineage(unknown=(f"weights {meta['weights_sha256'][:16]}: what they learned from is not listed",))
    if not file.exists() or sha256_file(file) != expected:
        wrong = "SHA-256 is not the one in model.json" if file.exists() else "missing, though model.json refers to it"
        raise IntegrityError(f"{file}: {wrong}; copy the whole folder again")
    return Lineage.load(file)
