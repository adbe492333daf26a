"""Cityscapes on disk, in both root conventions, and the released cross-validation splits.

A: ROOT/leftImg8bit/<split>, ROOT/gtFine/<split>, ROOT/gtCoarse/<split>
B: ROOT/leftImg8bit_trainvaltest/leftImg8bit/..., ROOT/leftImg8bit_trainextra/leftImg8bit/train_extra,
   ROOT/gtFine_trainvaltest/gtFine/..., ROOT/gtCoarse/gtCoarse/...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hmsa_core import taxonomy
from hmsa_core.data.layout import Found, Refused, Scan, list_files, list_folders, pair
from hmsa_core.data.spec import SourceSpec
from hmsa_core.io.errors import InputError, LayoutError

__all__ = ["TEST_CITIES", "TRAIN_CITIES", "VAL_CITIES", "cv_split", "scan"]

SPLITS = ("train", "val", "test", "train_extra")
TRAIN_CITIES = (
    "aachen",
    "bochum",
    "bremen",
    "cologne",
    "darmstadt",
    "dusseldorf",
    "erfurt",
    "hamburg",
    "hanover",
    "jena",
    "krefeld",
    "monchengladbach",
    "strasbourg",
    "stuttgart",
    "tubingen",
    "ulm",
    "weimar",
    "zurich",
)
VAL_CITIES = ("frankfurt", "lindau", "munster")
TEST_CITIES = ("berlin", "bielefeld", "bonn", "leverkusen", "mainz", "munich")

_IMAGE = "_leftImg8bit.png"
# City names hold hyphens, never underscores; the two numbers have six digits each.
_STEM = re.compile(r"^(?P<city>[^_]+)_(?P<sequence>\d{6})_(?P<frame>\d{6})$")
# Preferred first: maps of trainIds where the user made them, ids else, polygons where no map was kept.
_LABELS = ("_labelTrainIds.png", "_labelIds.png", "_polygons.json")


def cv_split(
    cv: int, train: Sequence[str] = TRAIN_CITIES, val: Sequence[str] = VAL_CITIES
) -> tuple[list[str], list[str]]:
    """(train cities, val cities) of the released cross-validation split `cv`.

    Val cities come first, then the train cities sorted; a window of len(val) cities starting at
    cv * len // 3 validates. Split 3 has every city in both: its validation number means nothing.
    """
    if not 0 <= cv <= 3:
        raise InputError(f"cross-validation split {cv}: expected 0, 1, 2 or 3")
    cities = [*sorted(val), *sorted(train)]
    if cv == 3:
        return cities, cities
    start = cv * len(cities) // 3
    window = cities[start : start + len(val)]
    return [c for c in cities if c not in window], window


def scan(root: Path, source: SourceSpec) -> Scan:
    """Pair images and labels by name; LayoutError when a whole folder that is needed is not there."""
    images = _Component(root, "leftImg8bit", ("leftImg8bit", *_zips("leftImg8bit")))
    fine = _Component(root, "gtFine", ("gtFine", "gtFine_trainvaltest/gtFine"))
    coarse = _Component(root, "gtCoarse", ("gtCoarse", "gtCoarse/gtCoarse"))
    splits = source.splits or tuple(s for s in SPLITS if images.folder(s) is not None)
    if not splits:
        raise LayoutError(
            f"{root}: no Cityscapes images found",
            hint="expected leftImg8bit/{train,val,...} or leftImg8bit_trainvaltest/leftImg8bit/{train,val,...}",
        )
    result = Scan("", taxonomy.cityscapes())
    for split in splits:
        _scan_split(split, images, fine, coarse, source, result)
    found = sorted({one for c in (images, fine, coarse) for one in c.convention.split("+") if one})
    result.layout = f"cityscapes, root convention {'+'.join(found)}"
    return result


def _zips(component: str) -> tuple[str, str]:
    return f"{component}_trainvaltest/{component}", f"{component}_trainextra/{component}"


class _Component:
    """One of the three parts of the data set, wherever a convention puts its splits."""

    def __init__(self, root: Path, name: str, places: tuple[str, ...]) -> None:
        self.root, self.name, self._places = root, name, places
        self.convention = ""

    def folder(self, split: str) -> str | None:
        """Folder of a split relative to the root, or None."""
        for place in self._places:
            if (self.root / place / split).is_dir():
                self._note("A" if "/" not in place else "B")
                return f"{place}/{split}"
        return None

    def _note(self, convention: str) -> None:
        if convention not in self.convention:
            self.convention = "+".join(sorted({*filter(None, self.convention.split("+")), convention}))

    def require(self, split: str) -> str:
        """As `folder`; LayoutError when it is not there."""
        folder = self.folder(split)
        if folder is None:
            tried = " or ".join(f"{place}/{split}" for place in self._places)
            raise LayoutError(f"{self.root}: {self.name} of split {split!r} not found: expected {tried}")
        return folder


def _scan_split(
    split: str, images: _Component, fine: _Component, coarse: _Component, source: SourceSpec, out: Scan
) -> None:
    pictures = _files(images, images.require(split), (_IMAGE,), split, out)
    labelled = split in ("train", "val") or (split == "test" and source.test_is_labelled)
    labels: dict[str, str] = {}
    if labelled:
        labels = _files(fine, fine.require(split), _suffixes("gtFine"), split, out)
    drawn_in = coarse.folder(split)
    drawn = _files(coarse, drawn_in, _suffixes("gtCoarse"), split, out) if drawn_in else {}
    if split == "train_extra" and not drawn:
        out.notes.append("train_extra has no gtCoarse: its images are unlabelled")
    _, no_label, no_image = pair(pictures, labels or drawn)
    for name in no_image:
        path = (labels or drawn)[name]
        out.refused.append(Refused(name, path, "label", split, "unpaired", "no image has this name"))
    for name in sorted(drawn.keys() - pictures.keys()) if labelled else ():
        out.refused.append(Refused(name, drawn[name], "coarse", split, "unpaired", "no image has this name"))
    bare = len(pictures.keys() - drawn.keys()) if split == "train_extra" and drawn else 0
    if bare:
        out.notes.append(f"{bare} images of train_extra have no coarse label: they are unlabelled")
    for name in no_label if labelled else ():
        out.refused.append(Refused(name, pictures[name], "image", split, "unpaired", "no fine label has this name"))
    for name in sorted(pictures if not labelled else pictures.keys() & labels.keys()):
        stem = _STEM.match(name)
        if stem is None:  # `_files` lets no such name through
            raise AssertionError(name)
        out.found.append(
            Found(
                name,
                pictures[name],
                labels.get(name, ""),
                drawn.get(name, ""),
                split,
                stem["city"],
                f"{stem['city']}_{stem['sequence']}",
                int(stem["frame"]),
            )
        )


def _suffixes(kind: str) -> tuple[str, ...]:
    return tuple(f"_{kind}{suffix}" for suffix in _LABELS)


def _files(part: _Component, folder: str, suffixes: tuple[str, ...], split: str, out: Scan) -> dict[str, str]:
    """{image name: path of its file with the first suffix that is there} over all cities of a split."""
    files: dict[str, tuple[int, str]] = {}
    for city in list_folders(part.root / folder):
        for file in list_files(part.root / folder / city, (".png", ".json")):
            rank, suffix = next(((i, s) for i, s in enumerate(suffixes) if file.endswith(s)), (-1, ""))
            if not suffix:  # instance ids, colours: not ours
                continue
            name, path = file.removesuffix(suffix), f"{folder}/{city}/{file}"
            stem = _STEM.match(name)
            if stem is None or stem["city"] != city:
                what = "image" if suffixes == (_IMAGE,) else "label"
                detail = f"expected {city}_<6 digits>_<6 digits>{suffix}"
                out.refused.append(Refused(name, path, what, split, "bad-name", detail))
            elif name not in files or rank < files[name][0]:
                files[name] = (rank, path)
    if not files:
        raise LayoutError(f"{part.root / folder}: no file ends with {' or '.join(suffixes)}")
    return {name: path for name, (_, path) in files.items()}
