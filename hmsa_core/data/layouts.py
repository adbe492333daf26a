"""Layouts of data sets on disk (docs/data.md): each reader pairs images with labels by name. No file is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hmsa_core import taxonomy
from hmsa_core.data.found import Found, Scan
from hmsa_core.data.plain import FRAME, name_pattern, place_of, scan_plain
from hmsa_core.data.source import SourceSpec
from hmsa_core.data.walk import by_image, is_empty, kinds_of, listing, stem_of
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import InputError, IntegrityError, LayoutError, is_plain_name
from hmsa_core.taxonomy import ClassTable
from hmsa_core.taxonomy.class_files import known_classes

# File systems take 255 bytes: minus the longest ending of an export and the suffix of a temporary file.
_NAME_BYTES = 200


def scan(source: SourceSpec) -> Scan:
    """Pair the files of a data set; LayoutError where a whole folder is missing, or nothing in it can be used."""
    root = Path(source.root)
    if not root.is_dir():
        raise LayoutError(f"{root}: data set folder not found", hint=f"set the path of root {source.name!r}")
    result = _SCANNERS[source.kind](root, source)
    _refuse_odd_names(result)
    if not result.found:
        first = next(iter(result.refused), None)
        why = f"; {len(result.refused)} refused, the first: {first.path}: {first.detail}" if first else ""
        raise LayoutError(f"{root}: no usable image of kind {source.kind} found ({result.layout}){why}")
    return result


def _refuse_odd_names(scan: Scan) -> None:
    """Refuse images whose names or folders no table can hold; write odd names of refused files in ASCII."""
    found, scan.found = scan.found, []
    for f in found:
        if len(f.name.encode(errors="surrogateescape")) > _NAME_BYTES:
            detail = f"its name has more than {_NAME_BYTES} bytes: files of exports add endings to it"
        elif not all(map(is_plain_name, (f.name, f.image, f.label, f.coarse))):
            detail = "a name on its path holds control characters or bytes that are no UTF-8"
        else:
            scan.found.append(f)
            continue
        scan.refuse(f.name, f.image, "image", f.split, "bad-name", detail)
    scan.refused = [
        replace(r, name=_shown(r.name), path=_shown(r.path), split=_shown(r.split), detail=_shown(r.detail))
        for r in scan.refused
    ]


def _shown(text: str) -> str:
    return text if is_plain_name(text) else ascii(text)[1:-1]


# ---- Cityscapes

SPLITS = ("train", "val", "test", "train_extra")
_IMAGE = "_leftImg8bit.png"
# City names may hold hyphens, never underscores; the two numbers have six digits each.
_STEM = re.compile(r"^(?P<city>[^_]+)_(?P<sequence>\d{6})_(?P<frame>\d{6})$")
# In order of preference: maps of trainIds that the user made, maps of ids, polygons.
_LABELS = ("_labelTrainIds.png", "_labelIds.png", "_polygons.json")


def cv_split(cv: int, train: Iterable[str], val: Collection[str]) -> tuple[list[str], list[str]]:
    """(train cities, val cities) of the released cross-validation split `cv`.

    Val cities come first, then the train cities sorted; a window of len(val) cities starting at
    cv * len // 3 validates. Split 3 has every city in both parts: its validation score is meaningless.
    """
    if not 0 <= cv <= 3:
        raise InputError(f"cross-validation split {cv}: expected 0, 1, 2 or 3")
    cities = [*sorted(val), *sorted(train)]
    if cv == 3:
        return cities, cities
    start = cv * len(cities) // 3
    window = cities[start : start + len(val)]
    return [c for c in cities if c not in window], window


def _scan_cityscapes(root: Path, source: SourceSpec) -> Scan:
    images = _Component(
        root, "leftImg8bit", ("", "leftImg8bit_trainvaltest/", "leftImg8bit_trainextra/"), (_IMAGE,), "image"
    )
    fine = _Component(root, "gtFine", ("", "gtFine_trainvaltest/"), tuple(f"_gtFine{s}" for s in _LABELS), "label")
    coarse = _Component(root, "gtCoarse", ("", "gtCoarse/"), tuple(f"_gtCoarse{s}" for s in _LABELS), "label")
    splits = source.splits or tuple(s for s in SPLITS if images.folder(s) is not None)
    if not splits:
        raise LayoutError(
            f"{root}: no Cityscapes images found",
            hint="expected leftImg8bit/{train,val,...} or leftImg8bit_trainvaltest/leftImg8bit/{train,val,...}",
        )
    result = Scan("", taxonomy.cityscapes())
    for split in splits:
        _scan_city_split(split, images, fine, coarse, result, test_is_labelled=source.test_is_labelled)
    conventions = sorted(images.conventions | fine.conventions | coarse.conventions)
    result.layout = f"cityscapes, root convention {'+'.join(conventions)}"
    return result


class _Component:
    """One of the three parts of Cityscapes, wherever a root convention puts its splits."""

    def __init__(self, root: Path, name: str, above: tuple[str, ...], suffixes: tuple[str, ...], part: str) -> None:
        self.root, self.name, self.suffixes, self.part = root, name, suffixes, part
        self.conventions: set[str] = set()
        self._places = [f"{folder}{name}" for folder in above]

    def folder(self, split: str) -> str | None:
        """Folder of a split relative to the root, or None."""
        for place in self._places:
            if (self.root / place / split).is_dir():
                self.conventions.add("B" if "/" in place else "A")
                return f"{place}/{split}"
        return None

    def files(self, split: str, out: Scan) -> dict[str, str]:
        """Return {image name: path of its file with the first existing suffix} over all cities of a split."""
        folder = self.folder(split)
        if folder is None:
            tried = " or ".join(f"{place}/{split}" for place in self._places)
            raise LayoutError(f"{self.root}: {self.name} of split {split!r} not found: expected {tried}")
        files: dict[str, tuple[int, str]] = {}
        for city in listing(self.root / folder).folders:
            for file in listing(self.root / folder / city, (".png", ".json")).files:
                rank, suffix = next(((i, s) for i, s in enumerate(self.suffixes) if file.endswith(s)), (-1, ""))
                if not suffix:  # instance ids and colours are not used
                    continue
                name, path = file.removesuffix(suffix), f"{folder}/{city}/{file}"
                stem = _STEM.match(name)
                if stem is None or stem["city"] != city:
                    detail = f"expected {city}_<6 digits>_<6 digits>{suffix}"
                    out.refuse(name, path, self.part, split, "bad-name", detail)
                elif name not in files or rank < files[name][0]:
                    files[name] = (rank, path)
        if not files:
            raise LayoutError(f"{self.root / folder}: no file ends with {' or '.join(self.suffixes)}")
        return {name: path for name, (_, path) in files.items()}


def _scan_city_split(
    split: str, images: _Component, fine: _Component, coarse: _Component, out: Scan, *, test_is_labelled: bool
) -> None:
    pictures = images.files(split, out)
    labelled = split in ("train", "val") or (split == "test" and test_is_labelled)
    labels = fine.files(split, out) if labelled else {}
    drawn = coarse.files(split, out) if coarse.folder(split) else {}
    needed = labels or drawn
    _refuse_unpaired(needed, pictures, "label", split, "no image has this name", out)
    if labelled:
        _refuse_unpaired(drawn, pictures, "coarse", split, "no image has this name", out)
        _refuse_unpaired(pictures, needed, "image", split, "no fine label has this name", out)
    if split == "train_extra" and not drawn:
        out.notes.append("train_extra has no gtCoarse: its images are unlabelled")
    elif split == "train_extra" and (bare := len(pictures.keys() - drawn.keys())):
        out.notes.append(f"{bare} images of train_extra have no coarse label: they are unlabelled")
    for name in sorted(pictures.keys() & labels.keys() if labelled else pictures):
        city, sequence, frame = name.split("_")  # `files` lets no other name through
        paths = pictures[name], labels.get(name, ""), drawn.get(name, "")
        out.found.append(Found(name, *paths, split, city, f"{city}_{sequence}", int(frame)))


def _refuse_unpaired(
    paths: dict[str, str],
    partners: Collection[str],
    part: str,
    split: str,
    detail: str,
    out: Scan,
    prefix: str = "",
    known: Mapping[str, str] = MappingProxyType({}),
) -> None:
    for name in sorted(paths.keys() - set(partners)):
        out.refuse(prefix + name, paths[name], part, split, "unpaired", known.get(name, detail))


# ---- Mapillary Vistas. An image key may start with `-`. There are no cities or sequences.


def _scan_vistas(root: Path, source: SourceSpec) -> Scan:
    """Read the class table from the release's config; labels are palette images whose indices are the ids."""
    config, version = _vistas_config(root, source.variant)
    classes = taxonomy.from_vistas_config(root / config)
    if source.variant not in (None, classes.name.removeprefix("mapillary_")):
        raise LayoutError(f"{root / config}: holds the labels of {classes.name}, asked for was {source.variant}")
    splits = source.splits or tuple(s for s in ("training", "validation") if (root / s).is_dir())
    if not splits:
        raise LayoutError(f"{root}: no Mapillary Vistas split found", hint="expected training/ and validation/")
    labels_in = f"{version}/labels" if version else "labels"
    result = Scan(f"mapillary, {config}, labels in <split>/{labels_in}", classes)
    for split in splits:
        images = _by_stem(root, f"{split}/images", "image", result, split=split, word="key")
        labelled = split != "testing"  # its label folders are empty or absent
        labels = _by_stem(root, f"{split}/{labels_in}", "label", result, split=split, word="key") if labelled else {}
        if labelled:
            _refuse_unpaired(images, labels, "image", split, "no label has this key", result)
        _refuse_unpaired(labels, images, "label", split, "no image has this key", result)
        both = images.keys() & labels.keys() if labelled else images
        result.found += [Found(key, images[key], labels.get(key, ""), split=split) for key in sorted(both)]
    return result


def _vistas_config(root: Path, variant: str | None) -> tuple[str, str]:
    """(config file, version folder or "" for the old layout)."""
    if (root / "config.json").is_file():
        return "config.json", ""
    for version in (variant,) if variant else ("v1.2", "v2.0"):
        if (root / f"config_{version}.json").is_file():
            return f"config_{version}.json", version
    expected = f"config_{variant}.json" if variant else "config_v1.2.json or config_v2.0.json"
    raise LayoutError(f"{root}: no Mapillary Vistas config found", hint=f"expected config.json (v1.x) or {expected}")


# ---- Plain folders, and CamVid


def load_classes(root: Path, name: str) -> ClassTable:
    """Class table from a file relative to `root`, or of a public label set by name."""
    if name == "cityscapes":
        return taxonomy.cityscapes()
    if name in ("mapillary_v1.2", "mapillary_v2.0"):
        return taxonomy.mapillary(name.removeprefix("mapillary_"))
    known = None if (root / name).is_file() else known_classes(name)
    return taxonomy.from_file(root / name) if known is None else taxonomy.from_list(known, name)


def _by_stem(
    root: Path, folder: str, part: str, out: Scan, *, prefix: str = "", split: str = "", word: str = "stem"
) -> dict[str, str]:
    """{stem: path} of the image files in a folder; a second file of a stem and odd names are refused."""
    files: dict[str, str] = {}
    here = listing(root / folder)
    for file in here.files:
        stem, path = stem_of(file), f"{folder}/{file}"
        if not is_plain_name(file):
            detail = "the name holds control characters or bytes that are no UTF-8"
            out.refuse(prefix + stem, path, part, split, "bad-name", detail)
        elif stem in files:
            kept = path if is_empty(root / files[stem]) else files[stem]
            other = files[stem] if kept == path else path
            out.refuse(prefix + stem, other, part, split, "duplicate-name", f"{kept} has the same {word}")
            files[stem] = kept
        else:
            files[stem] = path
    if here.others:
        out.notes.append(f"{folder}: not looked at: files of other kinds ({kinds_of(here.others)})")
    if not files:
        others = f", but files of other kinds ({kinds_of(here.others)})" if here.others else ""
        hint = f"it holds folders ({', '.join(here.folders[:3])}): name those with images in `splits`"
        raise LayoutError(f"{root / folder}: no image files{others}", hint=hint if here.folders else "")
    return files


def _scan_folder(root: Path, source: SourceSpec) -> Scan:
    result = Scan(f"folder, images in {source.images}/", load_classes(root, source.classes))
    pattern = name_pattern(source.pattern)
    for split in source.splits or ("",):
        _scan_folder_split(root, source, split, pattern, result)
    return result


def _scan_folder_split(root: Path, source: SourceSpec, split: str, pattern: re.Pattern[str] | None, out: Scan) -> None:
    prefix = split.replace("/", "__") + "__" if split and source.names == "path" else ""
    images = _by_stem(root, f"{source.images}/{split}" if split else source.images, "image", out, prefix=prefix)
    labels = _partners(root, source.labels, split, "label", prefix, out)
    coarse = _partners(root, source.coarse, split, "coarse", prefix, out)
    labels, ending = by_image(labels, images)
    if ending:
        out.notes.append(f"{source.labels}: label maps are paired with images without their ending {ending}")
    shown = split or "all"
    _refuse_unpaired(labels, images, "label", shown, "no image has this stem", out, prefix)
    # An image with a coarse label alone, or in a folder without labels, waits for the teacher.
    used = images.keys() & (labels.keys() | coarse.keys()) if labels else images.keys()
    detail = "no label has this stem (images to be labelled go into a split without a folder of labels)"
    unread = _unread(root / source.labels / split) if labels else {}
    _refuse_unpaired(images, used, "image", shown, detail, out, prefix, unread)
    for stem in sorted(used):
        name = prefix + stem
        match = pattern.search(name) if pattern else None
        city, sequence, frame = place_of(match)
        if pattern and (match is None or not FRAME.fullmatch(frame)):
            detail = f"the name {name} does not fit '{pattern.pattern}' (pattern)"
            out.refuse(name, images[stem], "image", shown, "bad-name", detail)
            continue
        paths = images[stem], labels.get(stem, ""), coarse.get(stem, "")
        out.found.append(Found(name, *paths, shown, city, sequence, int(frame)))


def _unread(folder: Path) -> dict[str, str]:
    """Return {stem: message} for label files of kinds that are not read."""
    files = (file for files in listing(folder).others.values() for file in files)
    return {stem_of(file): f"its label {file} is of a kind that is not read (PNG, WebP, TIFF are)" for file in files}


def _partners(root: Path, folder: str, split: str, part: str, prefix: str, out: Scan) -> dict[str, str]:
    """Labels or coarse labels of a split; a split without them is noted."""
    if not folder:
        return {}
    below = root / folder / split
    if split and (root / folder).is_dir():
        if part == "label" and not below.is_dir():
            out.notes.append(f"split {split} has no folder in {folder}/: its images are unlabelled")
            return {}
        if part == "coarse" and not (below.is_dir() and listing(below).files):
            out.notes.append(f"split {split} has no file in {folder}/: its images have no coarse labels")
            return {}
    return _by_stem(root, f"{folder}/{split}" if split else folder, part, out, prefix=prefix)


_CAMVID_ROLES = {
    "fine": "learn",
    "calibration": "calibrate",
    "selection": "report",
    "unlabelled": "unlabelled",
    "guard": "guard",
}
_CAMVID_NAME = re.compile(r"^(?P<sequence>.+)_f?(?P<frame>\d+)$")


def _scan_camvid(root: Path, source: SourceSpec) -> Scan:
    """The roles come from splits.json. Labels of the lists `unlabelled` and `guard` are never read."""
    variant = source.variant or "default"
    splits = _read_splits(root / "splits.json", variant)
    result = Scan(f"camvid, variant {variant}", load_classes(root, "classes.json"))
    images = _by_stem(root, "train/images", "image", result)
    labels = _by_stem(root, "train/labels", "label", result)
    coarse = _by_stem(root, "train_coarse", "coarse", result) if (root / "train_coarse").is_dir() else {}
    for subset, role in _CAMVID_ROLES.items():
        known = None if role in ("unlabelled", "guard") else labels
        for stem in splits[variant].get(subset, ()):
            _add_camvid(stem, images, known, coarse, role, result)
    unused = len(images.keys() - {f.name for f in result.found} - {r.name for r in result.refused})
    if unused:
        result.notes.append(f"{unused} images are in no list of variant {variant} and are not used")
    return result


def _read_splits(path: Path, variant: str) -> dict[str, Any]:
    if not path.is_file():
        raise LayoutError(f"{path}: not found", hint="expected CamVid's folder: train/, classes.json, splits.json")
    try:
        splits = read_json(path)
    except IntegrityError as error:
        raise LayoutError(error.message) from error
    if not isinstance(splits.get(variant), dict):
        raise LayoutError(f"{path}: has no variant {variant!r}")
    return splits


def _add_camvid(
    stem: str, images: dict[str, str], labels: dict[str, str] | None, coarse: dict[str, str], role: str, out: Scan
) -> None:
    match = _CAMVID_NAME.match(stem)
    if stem not in images:
        out.refuse(stem, "", "image", "train", "unpaired", "splits.json names it, no image is there")
    elif labels is not None and stem not in labels:
        out.refuse(stem, images[stem], "image", "train", "unpaired", "no label has this stem")
    elif match is None:
        out.refuse(stem, images[stem], "image", "train", "bad-name", "expected <drive>_<frame>")
    else:
        drive, frame = match["sequence"], int(match["frame"])
        label = labels[stem] if labels is not None else ""
        out.found.append(Found(stem, images[stem], label, coarse.get(stem, ""), "train", drive, drive, frame, role))


_SCANNERS: dict[str, Callable[[Path, SourceSpec], Scan]] = {
    "cityscapes": _scan_cityscapes,
    "mapillary": _scan_vistas,
    "camvid": _scan_camvid,
    "folder": _scan_folder,
    "plain": lambda root, source: scan_plain(root, source, load_classes(root, source.classes)),
}
