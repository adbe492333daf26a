"""Files as of Cityscapes, by city: labelIds, labelTrainIds and colours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hmsa_core.io.errors import InputError
from hmsa_core.labels.formats._folder import Files, update_folder
from hmsa_core.labels.formats._item import About, Item

IMAGE_ENDING = "_leftImg8bit"  # of Cityscapes' images
_NAME = re.compile(rf"^(?P<city>[^_]+)_\d{{6}}_\d{{6}}(?:{IMAGE_ENDING})?$")


def city_of(name: str) -> str:
    """City of a Cityscapes name (`aachen_000000_000019`, with or without its image's ending), "" for others."""
    match = _NAME.match(name)
    return match["city"] if match else ""


def folder_of(about: About, name: str) -> str:
    """City of an image: what the store says, else that of its name."""
    return str(about.store.row(name)["city"]) or city_of(name)


def stem(name: str) -> str:
    """The name as these formats have it: images that were labelled by their files' names end like Cityscapes' files."""
    return name.removesuffix(IMAGE_ENDING)


def refuse_twins(names: list[str]) -> None:
    """Refuse two images that would be the same files."""
    by_stem: dict[str, str] = {}
    for name in names:
        if (first := by_stem.setdefault(stem(name), name)) != name:
            raise InputError(
                f"{first} and {name} would be the same files", hint="export them apart (--name), or as masks"
            )


def write(out: Path, about: About, items: Iterator[Item]) -> None:
    """`CITY/NAME_SUFFIX_labelIds.png`, `_labelTrainIds.png` and `_color.png`."""
    refuse_twins(about.names)

    def files(item: Item) -> Files:
        colours = about.classes.palette()[item.label]
        forms = {"labelIds": about.ids(item.label), "labelTrainIds": item.label, "color": colours}
        folder, begin = folder_of(about, item.name), f"{stem(item.name)}_gtCoarse"
        return {(folder, f"{begin}_{kind}.png"): form for kind, form in forms.items()}

    update_folder(out, about, items, files)
