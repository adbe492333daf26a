"""A label store as files of other tools (`hmsa_core.labels.formats`).

What a format cannot hold is said in docs/label-store.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.data.decode import read_header, read_image
from hmsa_core.io.atomic import make_folder, sha256_bytes, write_bytes, write_json
from hmsa_core.io.errors import ConfigError, IntegrityError
from hmsa_core.io.trees import new_tree
from hmsa_core.labels.formats import find_format
from hmsa_core.labels.formats._item import About, Item, Labels
from hmsa_core.labels.formats._returned import EXPORTED, VERSION
from hmsa_core.labels.formats.released import sure_codes
from hmsa_core.labels.review import UNTOUCHED, ReviewFile, labels_id, marked_store, reviewed
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import plain_path, png_bytes
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy, keep


class Selection:
    """Which labels of a store are exported: all that it holds, or those that a policy keeps."""

    def __init__(self, store: LabelStore, policy: ThresholdPolicy | None = None) -> None:
        self.store, self._codes = store, None
        if policy is not None:
            if store.kind != "raw":
                raise ConfigError(f"{store.path}: is thresholded already", hint="leave out the threshold or policy")
            policy.check(store.lineage, store.classes, str(store.path))
            self._codes = policy.codes()

    def read(self, name: str) -> tuple[Labels, Labels]:
        """Label (255 where nothing is kept) and code of one image."""
        label, code = self.store.read(name)
        return (label if self._codes is None else keep(label, code, self._codes)), code


def _no_picture(name: str) -> Path:
    raise ConfigError(f"{name}: this format holds photographs", hint="say where they are (picture)")


def export_store(
    store: LabelStore,
    out: str | Path,
    fmt: str,
    *,
    picture: Callable[[str], Path] = _no_picture,
    policy: ThresholdPolicy | None = None,
    names: list[str] | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> int:
    """Write a store's labels; return the number of images.

    A format that brings labels back gets a new folder with the photographs. Corrections of people are in the labels.

    Args:
        store, out: the store and a folder, or the zip file of a submission.
        fmt: a name of `format_lines`.
        picture: path of an image's photograph, for a format that brings labels back.
        policy, names: thresholds for a raw store, and images; None = everything it holds.

    Raises:
        ConfigError: unknown format, or one that does not fit the store; `out` holds something else. InputError: images
            of which people changed files since an earlier export were kept; the others are written. IntegrityError: a
            photograph is another one than was labelled.
    """
    out, form, selection = Path(out), find_format(fmt), Selection(store, policy)
    wanted = store.names() if names is None else names
    for name in sorted(set(wanted) - set(store.names())):
        store.row(name)  # says that it is unknown, before there is a folder
    about = About(store, policy, fmt, labels_id(store.lineage), wanted, names is None)
    if hasattr(form, "read"):
        _write_task(form, out, about, selection, picture, advance)
    else:
        # A thresholded store has the corrections that were there when it was made.
        form.write(out, about, _items(selection, wanted, advance, corrected=store.kind == "raw"))
    return len(wanted)


def _items(
    selection: Selection, names: list[str], advance: Callable[[int], None], *, corrected: bool
) -> Iterator[Item]:
    """The images in order; if `corrected`, with people's corrections. What people drew has the highest code."""
    store = selection.store
    review = ReviewFile(marked_store(store.path.resolve(), store.kind), store.pictures())
    marks = review.by_name() if corrected else {}
    for name in names:
        label, code = selection.read(name)
        code = sure_codes(store, name, code)
        if name in marks:
            said = reviewed(marks[name], label.shape[0], label.shape[1], store.classes)[1]
            label = np.where(said == UNTOUCHED, label, said)
            code = np.where(said == UNTOUCHED, code, np.uint8(NUM_CODES - 1))
        yield Item(name, label, code)
        advance(1)


def _write_task(
    form: Any,
    out: Path,
    about: About,
    selection: Selection,
    picture: Callable[[str], Path],
    advance: Callable[[int], None],
) -> None:
    """Make the folder as a whole, with what `Exported` reads when labels come back."""
    store, images = about.store, dict[str, dict[str, Any]]()
    about.check_folder(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: not empty", hint="give a new folder: people may have corrected what is there")
    if store.classes.num_classes > UNTOUCHED:
        raise ConfigError(f"{store.path}: has {store.classes.num_classes} classes, at most {UNTOUCHED} are exported")

    def items(folder: Path) -> Iterator[Item]:
        for item in _items(selection, about.names, advance, corrected=True):  # nobody corrects the same twice
            name, row, path = item.name, store.row(item.name), picture(item.name)
            place = plain_path(folder, EXPORTED, f"{name}.png")
            data = path.read_bytes()
            if row["image_sha256"] and sha256_bytes(data) != row["image_sha256"]:
                raise IntegrityError(f"{path}: is another picture than the one that was labelled", hint="label it anew")
            suffix = path.suffix.lower()
            if read_header(path).orientation != 1:  # not every tool turns a photograph; its labels are upright
                data, suffix = png_bytes(read_image(path)), ".png"
            known = {key: row[key] for key in ("image_sha256", "label_sha256", "height", "width")}
            file, sha256 = f"{name}{suffix}", write_bytes(place, png_bytes(item.label))
            images[name] = {"file": file, "sha256": sha256, **known}
            yield Item(name, item.label, item.code, file, data)

    with new_tree(out) as folder:
        make_folder(folder / EXPORTED)
        form.write(folder, about, items(folder))
        index = {"format": about.format, "version": VERSION, "labels": about.labels, "images": images}
        write_json(folder / EXPORTED / "index.json", index | {"classes": store.classes.to_json()})
