"""Writing a label store as files of other tools."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest, open_atomic
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.exchange.files import IMAGE_ENDING, Selection, city_of, file_ids, target_path
from hmsa_core.labels.exchange.folder import ExportFolder
from hmsa_core.labels.store.codes import EDGES, NUM_CODES, ConfidenceCode
from hmsa_core.labels.store.format import SOURCES, png_bytes
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from hmsa_core.taxonomy import IGNORE

__all__ = ["FORMATS", "IMPORTED_BYTES", "export_store", "prob_bytes", "prob_bytes_of_codes"]

FORMATS = ("released", "released-flat", "cityscapes", "cityscapes-submission", "masks")
IMPORTED_BYTES = "released 8-bit"  # lineage entry `confidence` of a store made from _prob.png files
_SUBMISSION_SIZE = (1024, 2048)  # the test server takes nothing else

Labels = NDArray[np.uint8]
Advance = Callable[[int], None]


def prob_bytes(p: NDArray[np.floating]) -> NDArray[np.uint8]:
    """floor(255 p), as the released dump truncates it: 0.9 becomes 229, which is below 0.9 again."""
    return (p * 255).astype(np.uint8)


def prob_bytes_of_codes(code: NDArray[np.uint8], *, imported: bool = False) -> NDArray[np.uint8]:
    """Bytes for codes: floor(255 edge), so that no pixel claims more than its confidence was.

    `imported`: the codes were made from such bytes; then the largest byte of each code's cell is given, which
    is the original byte from 0.9 on (below, a cell of the code holds two or three of them).
    """
    return _byte_table(imported)[code]


@cache
def _byte_table(imported: bool) -> NDArray[np.uint8]:
    table = np.floor(np.array([float(e) for e in EDGES]) * 255 + 1e-9).astype(np.uint8)
    if imported:
        bytes_ = np.arange(256)
        codes = ConfidenceCode().encode((bytes_ / 255).astype(np.float32))
        table[codes] = bytes_  # later and so larger bytes win
    return table


def export_store(
    store: LabelStore,
    out: str | Path,
    fmt: str,
    *,
    policy: ThresholdPolicy | None = None,
    names: list[str] | None = None,
    suffix: str = "gtCoarse",
    advance: Advance | None = None,
) -> int:
    """Write a store's labels; return the number of images.

    Args:
        store: raw or thresholded store.
        out: folder, or the zip file of a submission.
        fmt: one of FORMATS.
        policy: thresholds for a raw store; None = everything it holds.
        names: images; None = all.
        suffix: middle part of Cityscapes file names (`..._gtCoarse_labelIds.png`).
        advance: called after each image.

    Raises:
        ConfigError: unknown format, or one that does not fit the store; `out` holds other files than an earlier export
            of the same kind. InputError: images of which people changed files since an earlier export were kept; the
            others are written.
    """
    if fmt not in FORMATS:
        raise ConfigError(f"unknown export format {fmt!r}", hint=f"one of {', '.join(FORMATS)}")
    if not re.fullmatch(r"[A-Za-z0-9.-]+", suffix):
        raise ConfigError(
            f"suffix {suffix!r}: letters, digits, - and . only", hint="file names are read back at their underscores"
        )
    wanted = store.names() if names is None else names
    if fmt != "masks":
        _refuse_twins(wanted)
    if fmt == "cityscapes-submission":
        return _submission(store, Path(out), policy, wanted, advance)
    selection = Selection(store, policy)
    facts = {
        "format": fmt,
        "suffix": suffix,
        "kept": _kept(store, policy),
        "labels": digest({"lineage": store.lineage, "classes": store.classes.digest()}),
    }
    for name in sorted(set(wanted) - set(store.names())):
        store.row(name)  # says that it is unknown, before there is a folder
    folder = ExportFolder(Path(out), facts)
    _write_all(selection, folder, wanted, fmt, suffix, advance)
    folder.finish(whole=names is None)
    return len(wanted)


def _kept(store: LabelStore, policy: ThresholdPolicy | None) -> str:
    if store.kind != "raw":
        return str((store.manifest["policy"] or {}).get("digest", "as stored"))
    return "all" if policy is None else policy.digest


def _write_all(
    selection: Selection, out: ExportFolder, names: list[str], fmt: str, suffix: str, advance: Advance | None
) -> None:
    store, write = selection.store, {"masks": _mask, "cityscapes": _cityscapes}.get(fmt, _released)
    for name in names:
        label, code = selection.read(name)
        if fmt.startswith("released") and store.kind != "raw":
            # A code says how sure the teacher was; what people drew has none, and is no guess to be dropped.
            code = np.where(store.read_source(name) == SOURCES["human"], np.uint8(NUM_CODES - 1), code)
        write(store, out, name, label, code, flat=fmt == "released-flat", suffix=suffix)
        _report(advance)


def _report(advance: Advance | None) -> None:
    if advance is not None:
        advance(1)


def _mask(
    store: LabelStore, out: ExportFolder, name: str, label: Labels, code: Labels, *, flat: bool, suffix: str
) -> None:
    del store, code, flat, suffix
    out.put(name, {target_path(out.out, "", f"{name}.png"): label})


def _city(store: LabelStore, name: str) -> str:
    return str(store.row(name)["city"]) or city_of(name)


def _refuse_twins(names: list[str]) -> None:
    by_stem: dict[str, str] = {}
    for name in names:
        if (first := by_stem.setdefault(_stem(name), name)) != name:
            raise InputError(
                f"{first} and {name} would be the same files", hint="export them apart (--name), or as masks"
            )


def _stem(name: str) -> str:
    """The name as these formats have it: images that were labelled by their files' names end like Cityscapes' files."""
    return name.removesuffix(IMAGE_ENDING)


def _cityscapes(
    store: LabelStore, out: ExportFolder, name: str, label: Labels, code: Labels, *, flat: bool, suffix: str
) -> None:
    del code, flat
    folder, stem = _city(store, name), _stem(name)
    forms = {"labelIds": file_ids(label, store), "labelTrainIds": label, "color": store.classes.palette()[label]}
    out.put(name, {target_path(out.out, folder, f"{stem}_{suffix}_{k}.png"): form for k, form in forms.items()})


def _released(
    store: LabelStore, out: ExportFolder, name: str, label: Labels, code: Labels, *, flat: bool, suffix: str
) -> None:
    del suffix
    folder, stem = "" if flat else _city(store, name), f"{_stem(name)}{IMAGE_ENDING}"
    imported = store.lineage.get("confidence") == IMPORTED_BYTES
    # Ignored pixels get byte 0 too: readers that drop by confidence alone drop them.
    prob = np.where(label == IGNORE, np.uint8(0), prob_bytes_of_codes(code, imported=imported))
    out.put(
        name,
        {
            target_path(out.out, folder, f"{stem}_prob.png"): prob,
            target_path(out.out, folder, f"{stem}.png"): file_ids(label, store),
        },
    )


def _submission(
    store: LabelStore, out: Path, policy: ThresholdPolicy | None, names: list[str], advance: Advance | None
) -> int:
    if policy is not None or store.kind != "raw":
        raise ConfigError(
            "a submission needs a class at every pixel", hint="give the raw store, without threshold or policy"
        )
    if out.suffix != ".zip":
        raise ConfigError(f"{out}: a submission is one zip file", hint="give a path that ends in .zip")
    if out.exists():
        raise ConfigError(f"{out}: exists", hint="give another name, or delete it")
    with open_atomic(out) as file, zipfile.ZipFile(cast("IO[bytes]", file), "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            label, _ = store.read(name)
            _check_submission(name, label)
            # A fixed date: the same labels give the same bytes.
            member = zipfile.ZipInfo(f"{_stem(name)}_pred_labelIds.png", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(member, png_bytes(file_ids(label, store)))
            _report(advance)
    return len(names)


def _check_submission(name: str, label: Labels) -> None:
    if not city_of(name):
        raise InputError(f"{name}: a submission's files are named <city>_<seq>_<frame>...")
    if label.shape != _SUBMISSION_SIZE:
        raise InputError(f"{name}: a submission's labels are {_SUBMISSION_SIZE}, this one is {label.shape}")
    if (label == IGNORE).any():
        raise InputError(f"{name}: has ignored pixels, a submission needs a class at every pixel")
