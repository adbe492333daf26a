"""Reading label files of other tools into a raw store. Formats are recognised by content, never by a path's name.

The released code goes by the word "refinement" in the path; here `_prob.png` files hold confidences in any folder.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_label, read_label_ids
from hmsa_core.data.walk import LABEL_SUFFIXES, kinds_of, stem_of, walk
from hmsa_core.io.errors import DecodeError, HmsaError, InputError, LayoutError
from hmsa_core.labels.formats._folder import MARK
from hmsa_core.labels.formats._returned import EXPORTED
from hmsa_core.labels.formats.cityscapes import IMAGE_ENDING, city_of
from hmsa_core.labels.formats.released import IMPORTED_BYTES
from hmsa_core.labels.store.writer import LabelStoreWriter
from hmsa_core.taxonomy import ClassTable

_LOG = logging.getLogger(__name__)
_PROB, _IDS, _TRAIN_IDS = "_prob", "_labelIds", "_labelTrainIds"  # before the suffix


class FoundFile(NamedTuple):
    """One label file, its confidence file where there is one, and the name that it gets."""

    name: str
    city: str
    label: Path
    prob: Path | None


def find_files(folder: str | Path) -> tuple[str, list[FoundFile]]:
    """Format ("released", "cityscapes" or "masks") and files of a folder, flat or one folder per city.

    Raises:
        LayoutError: an export for another tool, no PNG, two files of one name, or a confidence file without its label
            or the other way round.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: folder not found")
    around = (root, root.absolute().parent)  # FiftyOne's labels/ and the like hold other numbers than ids or trainIds
    if made := next((one for one in around if (one / EXPORTED / "index.json").is_file()), None):
        hint = f"`autolabel import FILE STORE --corrections-of {made}` reads what came back from it"
        raise LayoutError(f"{made}: is an export of `autolabel export` for another tool, no label files", hint=hint)
    there = walk(root, LABEL_SUFFIXES)
    files = list(there.paths())
    if not files:
        other = f", but files of other kinds ({kinds_of(there.others)})" if there.others else ""
        raise LayoutError(f"{root}: no PNG, WebP or TIFF files below this folder{other}")
    probs = {p.with_name(p.stem.removesuffix(_PROB)): p for p in files if p.stem.endswith(_PROB)}
    # A few masks may be named so; confidence files lie next to their labels, or are half of what is there.
    if 2 * len(probs) < len(files) and probs.keys().isdisjoint({p.with_suffix("") for p in files}):
        probs = {}
    if probs:
        fmt, labels = "released", [p for p in files if not p.stem.endswith(_PROB)]
    elif any(p.stem.endswith(_IDS) for p in files):
        fmt, labels = "cityscapes", [p for p in files if p.stem.endswith(_IDS)]
    else:
        fmt, labels = "masks", files
    found = [_found(root, p, fmt, probs.get(p.with_suffix(""))) for p in labels]
    _check(root, found, fmt, set(probs.values()))
    return fmt, found


def _found(root: Path, path: Path, fmt: str, prob: Path | None) -> FoundFile:
    name = stem_of(path)
    if fmt == "cityscapes":
        name = name.removesuffix(_IDS).rpartition("_")[0] or name.removesuffix(_IDS)
    name = name.removesuffix(IMAGE_ENDING)
    folder = path.parent.name if path.parent != root else ""
    return FoundFile(name, city_of(name) or folder, path, prob)


def _check(root: Path, found: list[FoundFile], fmt: str, probs: set[Path]) -> None:
    seen: dict[str, Path] = {}
    for file in found:
        if file.name in seen:
            raise LayoutError(f"{file.label} and {seen[file.name]} are both image {file.name!r}")
        seen[file.name] = file.label
    without = [(f.label, f"{_PROB}.png") for f in found if fmt == "released" and f.prob is None]
    without += [(prob, "label") for prob in sorted(probs - {f.prob for f in found})]
    if without:
        problem = f"{without[0][0].relative_to(root)} has no {without[0][1]} next to it"
        raise LayoutError(f"{root}: {problem} ({len(without)} such files)", hint="complete the folder")


def import_folder(
    folder: str | Path,
    out: str | Path,
    classes: ClassTable,
    *,
    lineage: Mapping[str, Any] | None = None,
    ids: Literal["auto", "file", "train"] = "auto",
    images_per_shard: int = 256,
    advance: Callable[[int], None] = lambda _count: None,
) -> tuple[str, int]:
    """Read a folder into a raw store; return its format and the number of images.

    Confidences of the released layout are bytes floor(255 p); they become the code of byte / 255, which a
    threshold keeps exactly when the released loader would. Labels without confidences get the highest code.

    Args:
        folder, out: what `find_files` understands, and the new store.
        classes, lineage: table of the label files' ids; what is known of their making.
        ids: what the files hold: ids of the data set's files, or trainIds; auto: trainIds in plain masks only.
    """
    fmt, files = find_files(folder)
    facts = {
        "imported_from": fmt,
        "confidence": IMPORTED_BYTES if fmt == "released" else "none given",
        **(lineage or {}),
    }
    for note in walk(Path(folder), LABEL_SUFFIXES).notes():
        _LOG.warning("%s: %s", folder, note)
    with _nothing_of_a_failure(Path(out)), LabelStoreWriter(out, facts, images_per_shard, classes=classes) as writer:
        train = ids == "train" or (ids == "auto" and fmt == "masks")
        ours = fmt == "cityscapes" and (Path(folder) / MARK).is_file()
        for file in files:
            label = _label(file.label, classes, train)
            if ours:
                _check_train_ids(file.label, label, classes)
            writer.add(file.name, label, _confidence(file, label), city=file.city)
            advance(1)
    return fmt, len(files)


@contextmanager
def _nothing_of_a_failure(out: Path) -> Iterator[None]:
    """Remove a new folder where its content is refused."""
    is_new = not out.exists()
    try:
        yield
    except HmsaError:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _check_train_ids(path: Path, label: NDArray[np.uint8], classes: ClassTable) -> None:
    """Of an export's two label files a person may have corrected the one that is not read."""
    stem = path.stem.removesuffix(_IDS) + _TRAIN_IDS
    for other in (path.with_name(stem + suffix) for suffix in sorted({".png", ".PNG", path.suffix})):
        if other.is_file() and not np.array_equal(_label(other, classes, train=True), label):
            raise InputError(
                f"{other}: says other classes than {path.name}, which is what is read",
                hint="correct both alike, or remove the one that is wrong",
            )


def _label(path: Path, classes: ClassTable, train: bool) -> NDArray[np.uint8]:
    try:
        return read_label(path, classes.of_train_ids() if train else classes)
    except DecodeError as error:
        if not train or error.reason != "ids-out-of-range" or error.hint:
            raise
        raise DecodeError(f"{error.message}, read as trainIds", reason=error.reason, hint="try --ids file") from error


def _confidence(file: FoundFile, label: NDArray[np.uint8]) -> NDArray[np.float32]:
    if file.prob is None:
        return np.ones(label.shape, np.float32)
    prob = read_label_ids(file.prob)
    if prob.shape != label.shape:
        raise InputError(f"{file.prob}: is {prob.shape}, its label {label.shape}")
    return (prob / 255).astype(np.float32)
