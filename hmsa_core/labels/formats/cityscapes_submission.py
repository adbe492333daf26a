"""One zip of ids at every pixel, for the test server of Cityscapes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from hmsa_core.io.atomic import open_atomic
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.formats._item import About, Item, Labels
from hmsa_core.labels.formats.cityscapes import city_of, refuse_twins, stem
from hmsa_core.labels.store.format import png_bytes
from hmsa_core.taxonomy import IGNORE

_SIZE = (1024, 2048)  # the test server takes nothing else


def write(out: Path, about: About, items: Iterator[Item]) -> None:
    """A zip file of `NAME_pred_labelIds.png`."""
    refuse_twins(about.names)
    if about.policy is not None or about.store.kind != "raw":
        raise ConfigError(
            "a submission needs a class at every pixel", hint="give the raw store, without threshold or policy"
        )
    if out.suffix != ".zip":
        raise ConfigError(f"{out}: a submission is one zip file", hint=f"give a path such as {out}.zip")
    if out.exists():
        raise ConfigError(f"{out}: exists", hint="give another name, or delete it")
    with open_atomic(out) as file, zipfile.ZipFile(cast("IO[bytes]", file), "w", zipfile.ZIP_STORED) as archive:
        for item in items:
            _check(item.name, item.label)
            # A fixed date: the same labels give the same bytes.
            member = zipfile.ZipInfo(f"{stem(item.name)}_pred_labelIds.png", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(member, png_bytes(about.ids(item.label)))


def _check(name: str, label: Labels) -> None:
    if not city_of(name):
        raise InputError(f"{name}: a submission's files are named <city>_<seq>_<frame>...")
    if label.shape != _SIZE:
        raise InputError(f"{name}: a submission's labels are {_SIZE}, this one is {label.shape}")
    if (label == IGNORE).any():
        raise InputError(
            f"{name}: has ignored pixels, a submission needs a class at every pixel",
            hint="give a store that `autolabel label` wrote",
        )
