"""Class names of the field's label sets by concept, to propose a network's classes for another class table.

The sets are Cityscapes, Mapillary Vistas, ADE20K, COCO-Stuff, BDD100K, CamVid and Pascal VOC. A concept has the names
that mean it, and wider concepts to fall back on where a table lacks it: a truck is a vehicle, else a car.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

# concept: (names, wider concepts from the nearest on)
_CONCEPTS: dict[str, tuple[str, str]] = {
    "road": ("road, street, carriageway, driveway, asphalt, drivable, drivable area, runway, roadway", ""),
    "lane marking": (
        "lane marking, lane markings, lane mkgs driv, lane mkgs non driv, road marking, road line",
        "road",
    ),
    "crosswalk": ("crosswalk, zebra crossing, crosswalk plain, lane marking crosswalk", "lane marking, road"),
    "lane": (
        "bike lane, service lane, parking, parking aisle, parking block, road shoulder, dirt track, manhole, pothole",
        "road",
    ),
    "sidewalk": ("sidewalk, pavement, footpath, footway, pedestrian area, path, walkway", ""),
    "curb": ("curb, curb cut, kerb", "sidewalk, road"),
    "building": (
        "building, house, skyscraper, edifice, hovel, garage, tower, roof, archway, shop, office",
        "construction",
    ),
    "bridge": ("bridge, tunnel, overpass", "building, construction"),
    "wall": (
        "wall, wall brick, wall concrete, wall panel, wall stone, wall tile, wall wood, stone wall, retaining wall",
        "building, construction",
    ),
    "construction": ("construction, structure, built", ""),
    "fence": (
        "fence, fencing, railing, rail, guard rail, guardrail, barrier, temporary barrier, cage, hedge fence",
        "construction",
    ),
    "pole": (
        "pole, column pole, utility pole, street light, streetlight, lamp post, traffic sign frame, post, "
        "column, pillar",
        "",
    ),
    "traffic sign": (
        "traffic sign, traffic signs, sign symbol, signsymbol, sign, signs, street sign, stop sign, "
        "signboard, traffic sign front, traffic sign back, road sign",
        "",
    ),
    "traffic light": ("traffic light, traffic lights, traffic signal", "traffic sign"),
    "vegetation": (
        "vegetation, tree, trees, bush, shrub, plant, plants, palm, vegetation misc, greenery, leaves, flower",
        "nature",
    ),
    "terrain": ("terrain, grass, ground, earth, dirt, sand, field, mud, soil, lawn, land", "nature, vegetation"),
    "mountain": ("mountain, hill, rock, stone", "nature, vegetation, terrain"),
    "nature": ("nature", "vegetation"),
    "sky": ("sky, cloud, clouds", ""),
    "water": ("water, river, sea, lake, water other", ""),
    "snow": ("snow", "terrain"),
    "person": ("person, people, pedestrian, pedestrians, human, child, man, woman, individual", ""),
    "rider": ("rider, bicyclist, cyclist, motorcyclist, other rider", "person"),
    "bicycle": ("bicycle, bike, cycle", "two-wheeler, rider"),
    "motorcycle": ("motorcycle, motorbike, minibike, motorcycle scooter, scooter", "two-wheeler, bicycle, rider"),
    "two-wheeler": ("two wheeler, two wheelers", "bicycle, rider"),
    "car": ("car, cars, auto, automobile, suv, suv pickup truck, van, caravan, taxi", "vehicle"),
    "truck": ("truck, lorry, truck bus, trailer, pickup", "vehicle, car"),
    "bus": ("bus, buses, autobus, coach", "truck, vehicle, car"),
    "train": ("train, tram, on rails, railway train", "bus, vehicle, car"),
    "vehicle": ("vehicle, vehicles, other vehicle, moving vehicle, other moving", "car"),
    "animal": ("animal, bird, ground animal, dog, cat, cow, horse, sheep", ""),
    "boat": ("boat, ship", "vehicle"),
}  # fmt: skip


@cache
def _by_name() -> dict[str, str]:
    return {name.replace(" ", ""): concept for concept, (names, _) in _CONCEPTS.items() for name in names.split(",")}


def concept_of(name: str) -> str | None:
    """The concept that a class name means, or None for an unknown one.

    Only the first of several names counts ("road, route"). Capitals, underscores, hyphens, spaces, brackets, a
    closing "-other", "-merged" or "group" and a plural do not matter. Of "Traffic Light - Cyclists" the first part
    decides.
    """
    first = re.split(r"[,;/]", name)[0]
    known = _by_name()
    for part in (first, re.sub(r"\(.*?\)", " ", first), re.sub(r"\(.*?\)", " ", first.split(" - ")[0])):
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", part)
        words = re.sub(r"[^a-z]+", " ", spaced.lower()).split()
        while len(words) > 1 and words[-1] in ("other", "general", "misc", "merged", "group"):
            words.pop()
        plain = "".join(words)
        for one in (plain, plain.removesuffix("s")):
            if one in known:
                return known[one]
    return None


def propose(names: Sequence[str], targets: Sequence[str]) -> dict[int, int]:
    """Return {position in `names`: position in `targets`} of classes with the same or the nearest wider concept.

    Equal names win over concepts. Names without a counterpart in `targets` are left out.
    """
    equal = {name.strip().lower(): i for i, name in enumerate(targets)}
    by_concept: dict[str, int] = {}
    for i, name in enumerate(targets):
        by_concept.setdefault(concept_of(name) or f"={name}", i)
    found: dict[int, int] = {}
    for i, name in enumerate(names):
        same = equal.get(name.strip().lower())
        target = same if same is not None else _nearest(concept_of(name), by_concept)
        if target is not None:
            found[i] = target
    return found


def _nearest(concept: str | None, by_concept: dict[str, int]) -> int | None:
    if concept is None:
        return None
    wider = [one.strip() for one in _CONCEPTS[concept][1].split(",") if one.strip()]
    return next((by_concept[one] for one in (concept, *wider) if one in by_concept), None)
