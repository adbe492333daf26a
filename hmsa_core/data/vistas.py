"""Mapillary Vistas on disk: the releases v1.0 to v1.2, and the combined one of 2021 (v1.2 and v2.0).

    v1.x:     ROOT/config.json;                  ROOT/<split>/{images,labels}
    combined: ROOT/config_v1.2.json, _v2.0.json; ROOT/<split>/images, ROOT/<split>/{v1.2,v2.0}/labels

A key may start with `-`; labels are palette images whose indices are the ids. There are no cities or
sequences: every image is its own block.
"""

from __future__ import annotations

from pathlib import Path

from hmsa_core.data.layout import Found, Refused, Scan, list_files, pair
from hmsa_core.data.spec import SourceSpec
from hmsa_core.io.errors import LayoutError
from hmsa_core.taxonomy import from_vistas_config

__all__ = ["scan"]


def scan(root: Path, source: SourceSpec) -> Scan:
    """Pair images and labels by key; the class table is read from the release's own config."""
    config, version = _config(root, source.variant)
    classes = from_vistas_config(root / config)
    if source.variant not in (None, classes.name.removeprefix("mapillary_")):
        raise LayoutError(f"{root / config}: holds the labels of {classes.name}, asked for was {source.variant}")
    splits = source.splits or tuple(s for s in ("training", "validation") if (root / s).is_dir())
    if not splits:
        raise LayoutError(f"{root}: no Mapillary Vistas split found", hint="expected training/ and validation/")
    labels_in = f"{version}/labels" if version else "labels"
    result = Scan(f"mapillary, {config}, labels in <split>/{labels_in}", classes)
    for split in splits:
        _scan_split(root, split, labels_in, result)
    return result


def _config(root: Path, variant: str | None) -> tuple[str, str]:
    """(config file, version folder or "" for the old layout)."""
    if (root / "config.json").is_file():
        return "config.json", ""
    for version in (variant,) if variant else ("v1.2", "v2.0"):
        if (root / f"config_{version}.json").is_file():
            return f"config_{version}.json", version
    expected = f"config_{variant}.json" if variant else "config_v1.2.json or config_v2.0.json"
    raise LayoutError(f"{root}: no Mapillary Vistas config found", hint=f"expected config.json (v1.x) or {expected}")


def _scan_split(root: Path, split: str, labels_in: str, out: Scan) -> None:
    images = _by_key(root, f"{split}/images", out)
    if split == "testing":  # its label folders are empty or absent
        out.found += [Found(key, path, split=split) for key, path in sorted(images.items())]
        return
    labels = _by_key(root, f"{split}/{labels_in}", out)
    both, no_label, no_image = pair(images, labels)
    out.refused += [Refused(k, images[k], "image", split, "unpaired", "no label has this key") for k in no_label]
    out.refused += [Refused(k, labels[k], "label", split, "unpaired", "no image has this key") for k in no_image]
    out.found += [Found(key, images[key], labels[key], split=split) for key in both]


def _by_key(root: Path, folder: str, out: Scan) -> dict[str, str]:
    files: dict[str, str] = {}
    for file in list_files(root / folder):
        key = Path(file).stem
        if key in files:
            detail = f"{files[key]} has the same key"
            out.refused.append(
                Refused(key, f"{folder}/{file}", "image", folder.split("/")[0], "duplicate-name", detail)
            )
        else:
            files[key] = f"{folder}/{file}"
    if not files:
        raise LayoutError(f"{root / folder}: no image files")
    return files
