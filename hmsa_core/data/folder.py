"""Plain folders (images and labels with the same stems), and CamVid's folder with its splits.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hmsa_core import taxonomy
from hmsa_core.data.layout import Found, Refused, Scan, list_files, list_folders, pair
from hmsa_core.data.spec import SourceSpec
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import ConfigError, IntegrityError, LayoutError, is_plain_name

__all__ = ["load_classes", "scan", "scan_camvid"]

_CAMVID_ROLES = {
    "fine": "learn",
    "calibration": "calibrate",
    "selection": "report",
    "unlabelled": "unlabelled",
    "guard": "guard",
}
_UNLABELLED = "no label has this stem (images to be labelled go into a split without a folder of labels)"
_CAMVID_NAME = re.compile(r"^(?P<sequence>.+)_f?(?P<frame>\d+)$")


def load_classes(root: Path, name: str) -> taxonomy.ClassTable:
    """Class table from a file relative to `root`, or a packaged one by name (cityscapes, mapillary_v1.2, ...)."""
    if name == "cityscapes":
        return taxonomy.cityscapes()
    if name in ("mapillary_v1.2", "mapillary_v2.0"):
        return taxonomy.mapillary(name.removeprefix("mapillary_"))
    return taxonomy.from_file(root / name)


def scan(root: Path, source: SourceSpec) -> Scan:
    """Pair images and labels by stem: `images/[split/]<stem>.*` with `labels/[split/]<stem>.png`."""
    result = Scan(f"folder, images in {source.images}/", load_classes(root, source.classes))
    pattern = _pattern(source.pattern)
    for split in source.splits or ("",):
        below = f"/{split}" if split else ""
        prefix = split.replace("/", "__") + "__" if split and source.names == "path" else ""
        images = _by_stem(root, source.images + below, "image", result, prefix)
        labels = _labels(root, source, split, result, prefix)
        coarse = _coarse(root, source, split, result, prefix)
        _pair(images, labels, coarse, split or "all", prefix, pattern, result)
    return result


def _labels(root: Path, source: SourceSpec, split: str, out: Scan, prefix: str) -> dict[str, str]:
    if not source.labels:
        return {}
    if split and not (root / source.labels / split).is_dir() and (root / source.labels).is_dir():
        out.notes.append(f"split {split} has no folder in {source.labels}/: its images are unlabelled")
        return {}
    return _by_stem(root, f"{source.labels}/{split}" if split else source.labels, "label", out, prefix)


def _coarse(root: Path, source: SourceSpec, split: str, out: Scan, prefix: str) -> dict[str, str]:
    """Coarse labels of a split; most splits (calibration, report) need none."""
    if not source.coarse:
        return {}
    folder = root / source.coarse / split
    if split and (root / source.coarse).is_dir() and not (folder.is_dir() and list_files(folder)):
        out.notes.append(f"split {split} has no file in {source.coarse}/: its images have no coarse labels")
        return {}
    return _by_stem(root, f"{source.coarse}/{split}" if split else source.coarse, "coarse", out, prefix)


def _pattern(text: str) -> re.Pattern[str] | None:
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"pattern: {text!r} is no regular expression ({error})") from error
    unknown = sorted(set(pattern.groupindex) - {"city", "sequence", "frame"})
    if unknown or not pattern.groupindex:
        told = f"group {unknown[0]!r} is unknown" if unknown else f"{text!r} has no named group"
        raise ConfigError(f"pattern: {told}", hint="groups: (?P<city>...), (?P<sequence>...), (?P<frame>...)")
    return pattern


def _by_stem(root: Path, folder: str, part: str, out: Scan, prefix: str = "") -> dict[str, str]:
    files: dict[str, str] = {}
    for file in list_files(root / folder):
        stem = Path(file).stem
        if not is_plain_name(file):
            detail = "the name holds control characters or bytes that are no UTF-8"
            out.refused.append(Refused(prefix + stem, f"{folder}/{file}", part, "", "bad-name", detail))
        elif stem in files:
            detail = f"{files[stem]} has the same stem"
            out.refused.append(Refused(prefix + stem, f"{folder}/{file}", part, "", "duplicate-name", detail))
        else:
            files[stem] = f"{folder}/{file}"
    if not files:
        below = list_folders(root / folder)
        hint = f"it holds folders ({', '.join(below[:3])}): name those with images in `splits`" if below else ""
        raise LayoutError(f"{root / folder}: no image files", hint=hint)
    return files


def _pair(
    images: dict[str, str],
    labels: dict[str, str],
    coarse: dict[str, str],
    split: str,
    prefix: str,
    pattern: re.Pattern[str] | None,
    out: Scan,
) -> None:
    _, no_label, no_image = pair(images, labels)
    for stem in no_image:
        out.refused.append(Refused(prefix + stem, labels[stem], "label", split, "unpaired", "no image has this stem"))
    for stem in no_label if labels else ():
        # An image with a coarse label alone, or in a folder without labels, waits for the teacher.
        if stem not in coarse:
            out.refused.append(Refused(prefix + stem, images[stem], "image", split, "unpaired", _UNLABELLED))
    for stem in sorted(images):
        if labels and stem not in labels and stem not in coarse:
            continue
        name = prefix + stem
        groups = match.groupdict() if pattern and (match := pattern.search(name)) else {}
        city, frame = groups.get("city") or "", groups.get("frame") or "-1"
        if pattern and (not groups or not re.fullmatch(r"-1|\d{1,18}", frame)):
            detail = f"the name does not fit {pattern.pattern!r}"
            out.refused.append(Refused(name, images[stem], "image", split, "bad-name", detail))
            continue
        out.found.append(
            Found(
                name,
                images[stem],
                labels.get(stem, ""),
                coarse.get(stem, ""),
                split,
                city,
                groups.get("sequence") or city,
                int(frame),
            )
        )


def scan_camvid(root: Path, source: SourceSpec) -> Scan:
    """CamVid with splits.json and classes.json: the roles come from the splits file.

    Labels of images in the `unlabelled` and `guard` lists are never read, even where they are there; the
    official val clip is left out unless `official_val` asks for it (as split val, role guard).
    """
    variant = source.variant or "default"
    splits = _read_splits(root / "splits.json", variant)
    result = Scan(f"camvid, variant {variant}", load_classes(root, "classes.json"))
    images = _by_stem(root, "train/images", "image", result)
    labels = _by_stem(root, "train/labels", "label", result)
    coarse = _by_stem(root, "train_coarse", "coarse", result) if (root / "train_coarse").is_dir() else {}
    for subset, role in _CAMVID_ROLES.items():
        for stem in splits[variant].get(subset, ()):
            labelled = role not in ("unlabelled", "guard")
            _add(stem, images, labels if labelled else None, coarse, "train", role, result)
    unused = len(images.keys() - {f.name for f in result.found} - {r.name for r in result.refused})
    if unused:
        result.notes.append(f"{unused} images are in no list of variant {variant} and are not used")
    if source.official_val:
        images, labels = _by_stem(root, "val/images", "image", result), _by_stem(root, "val/labels", "label", result)
        for stem in splits.get("val_official", ()):
            _add(stem, images, labels, {}, "val", "guard", result)
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


def _add(
    stem: str,
    images: dict[str, str],
    labels: dict[str, str] | None,
    coarse: dict[str, str],
    split: str,
    role: str,
    out: Scan,
) -> None:
    match = _CAMVID_NAME.match(stem)
    if stem not in images:
        out.refused.append(Refused(stem, "", "image", split, "unpaired", "splits.json names it, no image is there"))
    elif labels is not None and stem not in labels:
        out.refused.append(Refused(stem, images[stem], "image", split, "unpaired", "no label has this stem"))
    elif match is None:
        out.refused.append(Refused(stem, images[stem], "image", split, "bad-name", "expected <drive>_<frame>"))
    else:
        drive, frame = match["sequence"], int(match["frame"])
        label = labels[stem] if labels is not None else ""
        out.found.append(Found(stem, images[stem], label, coarse.get(stem, ""), split, drive, drive, frame, role))
