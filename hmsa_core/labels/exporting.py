"""A label store as files of other tools; a folder of such files holds one export and nothing else.

    .autolabel-export.json       what the export is of, and {image: {file: SHA-256 as it was written}}
    .autolabel-export.pending/   the same of images that are about to be written: read after a kill

What a person changed in the folder is never overwritten. An image's files belong together: where a person changed
one of them, all of them stay as they are. What a format cannot hold is said in docs/label-store.md.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.store.codes import EDGES, NUM_CODES, ConfidenceCode
from hmsa_core.labels.store.format import SOURCES, png_bytes
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy, keep
from hmsa_core.taxonomy import IGNORE

FORMATS = ("released", "released-flat", "cityscapes", "cityscapes-submission", "masks")
IMPORTED_BYTES = "released 8-bit"  # lineage entry `confidence` of a store made from _prob.png files
IMAGE_ENDING = "_leftImg8bit"  # of Cityscapes' images
MARK, PENDING = ".autolabel-export.json", ".autolabel-export.pending"
_CITYSCAPES_NAME = re.compile(rf"^(?P<city>[^_]+)_\d{{6}}_\d{{6}}(?:{IMAGE_ENDING})?$")
_SUBMISSION_SIZE = (1024, 2048)  # the test server takes nothing else
_BATCH_BYTES = 16 << 20  # written after one note

Labels = NDArray[np.uint8]
Advance = Callable[[int], None]
Digests = dict[str, str]  # file, relative to the folder: SHA-256; "" of one that a person changed before it was known


class Selection:
    """Which labels of a store are exported: all that it holds, or those that a policy keeps."""

    def __init__(self, store: LabelStore, policy: ThresholdPolicy | None = None) -> None:
        self.store, self._codes = store, None
        if policy is not None:
            if store.kind != "raw":
                raise ConfigError(f"{store.path}: is thresholded already", hint="leave out the threshold or policy")
            policy.check(store.lineage, store.classes, str(store.path))
            self._codes = policy.codes()

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Label (255 where nothing is kept) and code of one image."""
        label, code = self.store.read(name)
        return (label if self._codes is None else keep(label, code, self._codes)), code


def _file_ids(label: NDArray[np.uint8], store: LabelStore) -> NDArray[np.uint8]:
    """The label with the ids that the data set's files hold; ignored pixels get the id that is ignored there."""
    table = np.full(256, store.classes.ignored_id, np.uint8)
    table[: store.classes.num_classes] = store.classes.train_to_id
    return table[label]


def target_path(out: Path, folder: str, file: str) -> Path:
    """`out/folder/file`, refused when a name from a store would leave `out`."""
    path = out / folder / file
    if not path.resolve().is_relative_to(out.resolve()) or Path(file).name != file:
        raise InputError(f"image name {file!r} is not a plain file name", hint="rename the image in the store")
    return path


def city_of(name: str) -> str:
    """City of a Cityscapes name (`aachen_000000_000019`, with or without its image's ending), "" for others."""
    match = _CITYSCAPES_NAME.match(name)
    return match["city"] if match else ""


def prob_bytes_of_codes(code: NDArray[np.uint8], *, imported: bool = False) -> NDArray[np.uint8]:
    """Bytes for codes: floor(255 edge), so that no pixel claims more than its confidence was.

    `imported`: the codes were made from such bytes. Then the largest byte of each code's cell is given. From 0.9 on it
    is the original byte; below, a cell of the code holds two or three bytes.
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
    advance: Advance = lambda _count: None,
) -> int:
    """Write a store's labels; return the number of images.

    Args:
        store, out: the store and a folder, or the zip file of a submission.
        fmt: one of FORMATS.
        policy, names: thresholds for a raw store, and images; None = everything it holds.
        suffix: middle part of Cityscapes file names (`..._gtCoarse_labelIds.png`).

    Raises:
        ConfigError: unknown format, or one that does not fit the store; `out` holds other files than an earlier export
            of the same kind. InputError: images of which people changed files since an earlier export were kept; the
            others are written.
    """
    if fmt not in FORMATS:
        raise ConfigError(f"unknown export format {fmt!r}", hint=f"one of {', '.join(FORMATS)}")
    if not re.fullmatch(r"[A-Za-z0-9.-]+", suffix):
        raise ConfigError(
            f"suffix {suffix!r}: only letters, digits, - and . are allowed",
            hint="an import splits file names at underscores",
        )
    wanted = store.names() if names is None else names
    if fmt != "masks":
        _refuse_twins(wanted)
    if fmt == "cityscapes-submission":
        return _submission(store, Path(out), policy, wanted, advance)
    selection = Selection(store, policy)
    facts = {
        "format": fmt,
        "version": "1",
        "suffix": suffix,
        "kept": _kept(store, policy),
        "labels": atomic.digest({"lineage": store.lineage, "classes": store.classes.digest()}),
    }
    for name in sorted(set(wanted) - set(store.names())):
        store.row(name)  # says that it is unknown, before there is a folder
    folder = _ExportFolder(Path(out), facts)
    for name in wanted:
        folder.put(name, _files(selection, folder.out, name, fmt, suffix))
        advance(1)
    folder.finish(whole=names is None)
    return len(wanted)


def _kept(store: LabelStore, policy: ThresholdPolicy | None) -> str:
    if store.kind != "raw":
        return str((store.manifest["policy"] or {}).get("digest", "as stored"))
    return "all" if policy is None else policy.digest


def _files(selection: Selection, out: Path, name: str, fmt: str, suffix: str) -> dict[Path, Labels]:
    """The 8-bit PNG files of one image."""
    store, stem = selection.store, _stem(name)
    label, code = selection.read(name)
    if fmt == "masks":
        return {target_path(out, "", f"{name}.png"): label}
    folder = "" if fmt == "released-flat" else str(store.row(name)["city"]) or city_of(name)
    ids = _file_ids(label, store)
    if fmt == "cityscapes":
        forms = {"labelIds": ids, "labelTrainIds": label, "color": store.classes.palette()[label]}
        return {target_path(out, folder, f"{stem}_{suffix}_{kind}.png"): form for kind, form in forms.items()}
    stem += IMAGE_ENDING
    return {
        target_path(out, folder, f"{stem}_prob.png"): prob_of(store, label, sure_codes(store, name, code)),
        target_path(out, folder, f"{stem}.png"): ids,
    }


def sure_codes(store: LabelStore, name: str, code: Labels) -> Labels:
    """Codes of one image as they are exported, the highest one where people drew."""
    if store.kind == "raw":
        return code
    # A code says how sure the teacher was; what people drew has none, and is no guess to be dropped.
    return np.where(store.read_source(name) == SOURCES["human"], np.uint8(NUM_CODES - 1), code)


def prob_of(store: LabelStore, label: Labels, code: Labels) -> Labels:
    """Bytes of confidence of one image, from its label and codes as they are exported."""
    imported = store.lineage.get("confidence") == IMPORTED_BYTES
    # Ignored pixels get byte 0 too: readers that drop by confidence alone drop them.
    return np.where(label == IGNORE, np.uint8(0), prob_bytes_of_codes(code, imported=imported))


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


def _submission(
    store: LabelStore, out: Path, policy: ThresholdPolicy | None, names: list[str], advance: Advance
) -> int:
    if policy is not None or store.kind != "raw":
        raise ConfigError(
            "a submission needs a class at every pixel", hint="give the raw store, without threshold or policy"
        )
    if out.suffix != ".zip":
        raise ConfigError(f"{out}: a submission is one zip file", hint="give a path that ends in .zip")
    if out.exists():
        raise ConfigError(f"{out}: exists", hint="give another name, or delete it")
    with atomic.open_atomic(out) as file, zipfile.ZipFile(cast("IO[bytes]", file), "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            label, _ = store.read(name)
            _check_submission(name, label)
            # A fixed date: the same labels give the same bytes.
            member = zipfile.ZipInfo(f"{_stem(name)}_pred_labelIds.png", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(member, png_bytes(_file_ids(label, store)))
            advance(1)
    return len(names)


def _check_submission(name: str, label: Labels) -> None:
    if not city_of(name):
        raise InputError(f"{name}: a submission's files are named <city>_<seq>_<frame>...")
    if label.shape != _SUBMISSION_SIZE:
        raise InputError(f"{name}: a submission's labels are {_SUBMISSION_SIZE}, this one is {label.shape}")
    if (label == IGNORE).any():
        told = f"{name}: has ignored pixels, a submission needs a class at every pixel"
        raise InputError(told, hint="give a store that `autolabel label` wrote")


class _ExportFolder:
    """Writes images, remembers their digests, and at the end removes those that the export no longer has.

    The folder is new or empty, or has an earlier export of the same `facts`; another one is a ConfigError.
    """

    def __init__(self, out: Path, facts: Mapping[str, str]) -> None:
        self.out, self._facts = out, dict(facts)
        self._before: dict[str, Digests] = self._claim()
        self._now: dict[str, Digests] = {}
        self._changed: list[str] = []
        self._batch: dict[str, dict[str, bytes]] = {}
        self._batch_bytes = self._notes = 0

    def _claim(self) -> dict[str, Digests]:
        """Mark the folder before its first file: photographs and labels of people have names like ours."""
        mark = self.out / MARK
        if not mark.is_file():
            if self.out.is_dir() and not all(atomic.is_temp(path.name, of=MARK) for path in self.out.iterdir()):
                raise ConfigError(f"{self.out}: not empty and not an earlier export", hint="give a new folder")
            atomic.make_folder(self.out)
            atomic.sweep_temps(self.out)
            self._save({})
            return {}
        there = atomic.read_json(mark)
        other = [name for name, value in self._facts.items() if there.get(name) != value]
        if other:
            raise ConfigError(
                f"{self.out}: holds another export (of other {', '.join(other)})", hint="give a new folder"
            )
        return self._settle(dict(there["images"]))

    def _settle(self, known: dict[str, Digests]) -> dict[str, Digests]:
        """What a run that was killed had written: each file is the one from before it or its own."""
        pending = self.out / PENDING
        notes = [atomic.read_json(path) for path in sorted(pending.glob("*.json"))]
        for note in notes:
            for image, files in note.items():
                old = known.get(image, {})
                known[image] = {name: self._settled(name, old.get(name, ""), new) for name, new in files.items()}
        if notes:
            self._save(known)
        if pending.is_dir():
            atomic.remove_tree(pending)
            atomic.sweep_temps(self.out)
        return known

    def _settled(self, name: str, old: str, new: str) -> str:
        path = self.out / name
        return new if not path.exists() or atomic.sha256_file(path) == new else old

    def _save(self, images: Mapping[str, Digests]) -> None:
        atomic.write_json(self.out / MARK, {**self._facts, "images": images})

    def _changed_file(self, files: Mapping[str, str], old: Mapping[str, str]) -> str:
        """The first file that is neither what was written before nor what is to be written; "" if there is none."""
        for name in {**files, **old}:
            path = self.out / name
            if path.exists() and atomic.sha256_file(path) not in (old.get(name), files.get(name)):
                return name
        return ""

    def put(self, image: str, files: Mapping[Path, NDArray[np.uint8]]) -> None:
        """Write an image's 8-bit PNG files, each atomically, unless a person changed one of those that are there."""
        data = {path.relative_to(self.out).as_posix(): png_bytes(array) for path, array in files.items()}
        digests, old = {name: atomic.sha256_bytes(each) for name, each in data.items()}, self._before.get(image, {})
        if changed := self._changed_file(digests, old):
            self._changed.append(changed)
            self._now[image] = old
            return
        self._now[image] = digests
        self._batch[image] = data
        self._batch_bytes += sum(map(len, data.values()))
        if self._batch_bytes > _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        self._notes += 1
        atomic.write_json(
            self.out / PENDING / f"{self._notes:06d}.json", {image: self._now[image] for image in self._batch}
        )
        for image, files in self._batch.items():
            for name, data in files.items():
                atomic.write_bytes(self.out / name, data)
            for name in self._before.get(image, {}).keys() - files.keys():  # its city has another name now
                (self.out / name).unlink(missing_ok=True)
        self._batch, self._batch_bytes = {}, 0

    def finish(self, *, whole: bool) -> None:
        """Write what is left, remove what the export has no longer (`whole`: all of it was put), tell what was kept.

        Raises:
            InputError: images of which people changed files stay as they are.
        """
        self._flush()
        for image in sorted(self._before.keys() - self._now.keys()):
            old = self._before[image]
            changed = self._changed_file({}, old) if whole else ""
            if whole and not changed:
                for name in old:
                    (self.out / name).unlink(missing_ok=True)
                continue
            self._now[image] = old
            if changed:
                self._changed.append(changed)
        self._save(self._now)
        atomic.remove_tree(self.out / PENDING)
        if self._changed:
            count = len(self._changed)
            several = f"{count} images have files that were" if count > 1 else "1 image has a file that was"
            raise InputError(
                f"{self.out}: {several} changed after the export: {', '.join(self._changed)}; all files of "
                f"{'these' if count > 1 else 'it'} are kept as they are, all others are up to date",
                hint="give a new folder to have the store's labels of all images",
            )
