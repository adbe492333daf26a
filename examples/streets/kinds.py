"""What each painted kind is called in the two data sets, and the class tables read from hmsa_core.

None: the kind is not annotated on its own there; it stays part of whatever it was painted on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import hmsa_core

__all__ = ["KINDS", "ClassEntry", "ClassTable", "cityscapes", "vistas"]

# kind: (Cityscapes label name, Mapillary Vistas v1.2 name key)
KINDS: dict[str, tuple[str | None, str | None]] = {
    "sky": ("sky", "nature--sky"),
    "mountain": ("terrain", "nature--mountain"),
    "building": ("building", "construction--structure--building"),
    "bridge": ("bridge", "construction--structure--bridge"),
    "wall": ("wall", "construction--barrier--wall"),
    "fence": ("fence", "construction--barrier--fence"),
    "guard rail": ("guard rail", "construction--barrier--guard-rail"),
    "road": ("road", "construction--flat--road"),
    "sidewalk": ("sidewalk", "construction--flat--sidewalk"),
    "curb": ("sidewalk", "construction--barrier--curb"),
    "bike lane": ("sidewalk", "construction--flat--bike-lane"),
    "parking": ("parking", "construction--flat--parking"),
    "rail track": ("rail track", "construction--flat--rail-track"),
    "ground": ("ground", "construction--flat--pedestrian-area"),
    "marking": (None, "marking--general"),
    "crosswalk": (None, "marking--crosswalk-zebra"),
    "manhole": (None, "object--manhole"),
    "vegetation": ("vegetation", "nature--vegetation"),
    "terrain": ("terrain", "nature--terrain"),
    "pole": ("pole", "object--support--pole"),
    "utility pole": ("pole", "object--support--utility-pole"),
    "street light": ("static", "object--street-light"),
    "traffic light": ("traffic light", "object--traffic-light"),
    "traffic sign": ("traffic sign", "object--traffic-sign--front"),
    "traffic sign back": ("static", "object--traffic-sign--back"),
    "billboard": ("static", "object--billboard"),
    "banner": ("static", "object--banner"),
    "trash can": ("static", "object--trash-can"),
    "bench": ("static", "object--bench"),
    "junction box": ("static", "object--junction-box"),
    "mailbox": ("static", "object--mailbox"),
    "person": ("person", "human--person"),
    "bicyclist": ("rider", "human--rider--bicyclist"),
    "motorcyclist": ("rider", "human--rider--motorcyclist"),
    "bicycle": ("bicycle", "object--vehicle--bicycle"),
    "motorcycle": ("motorcycle", "object--vehicle--motorcycle"),
    "car": ("car", "object--vehicle--car"),
    "truck": ("truck", "object--vehicle--truck"),
    "bus": ("bus", "object--vehicle--bus"),
    "train": ("train", "object--vehicle--on-rails"),
    "trailer": ("trailer", "object--vehicle--trailer"),
    "caravan": ("caravan", "object--vehicle--caravan"),
    "animal": ("dynamic", "animal--ground-animal"),
    "stroller": ("dynamic", "object--vehicle--wheeled-slow"),
    "license plate": ("license plate", None),
    "ego vehicle": ("ego vehicle", "void--ego-vehicle"),
    "border": ("rectification border", "void--unlabeled"),
    "out of roi": ("out of roi", "void--unlabeled"),
}


@dataclass(frozen=True)
class ClassEntry:
    """One class of a data set's table."""

    id: int
    name: str
    colour: tuple[int, int, int]
    has_instances: bool
    readable: str = ""
    train_id: int = 255


@dataclass(frozen=True)
class ClassTable:
    """Classes in id order, by name, and the void id that a canvas starts with."""

    entries: tuple[ClassEntry, ...]
    void_id: int

    def by_name(self, name: str) -> ClassEntry:
        """The class of this name; KeyError for a name that is not in the table."""
        return _index(self)[name]


@lru_cache(maxsize=8)
def _index(table: ClassTable) -> dict[str, ClassEntry]:
    return {entry.name: entry for entry in table.entries}


def _read(name: str) -> list[dict[str, object]]:
    path = Path(hmsa_core.__file__).parent / "taxonomy" / name
    labels: list[dict[str, object]] = json.loads(path.read_text())["labels"]
    return labels


def _entry(row: dict[str, object], instances: str) -> ClassEntry:
    red, green, blue = (int(value) for value in row["colour"])  # type: ignore[attr-defined]  # JSON list
    return ClassEntry(
        id=int(str(row["id"])),
        name=str(row["name"]),
        colour=(red, green, blue),
        has_instances=bool(row[instances]),
        readable=str(row.get("readable", "")),
        train_id=int(str(row.get("trainId", 255))),
    )


@lru_cache(maxsize=1)
def cityscapes() -> ClassTable:
    """The 35 Cityscapes labels."""
    return ClassTable(tuple(_entry(row, "hasInstances") for row in _read("cityscapes.json")), void_id=0)


@lru_cache(maxsize=2)
def vistas(version: str = "v1.2") -> ClassTable:
    """The Mapillary Vistas labels of v1.2 (66) or v2.0 (124)."""
    rows = _read(f"mapillary_{version}.json")
    return ClassTable(tuple(_entry(row, "instances") for row in rows), void_id=len(rows) - 1)
