"""What one drive's street is like: cross-section, crossings, what stands along it, light. No painting here."""

from __future__ import annotations

from dataclasses import dataclass

from examples.streets.canvas import Colour
from examples.streets.palette import ASPHALT, vary
from examples.streets.rng import Rng
from examples.streets.textures import mix
from examples.streets.weather import Weather, make_weather

__all__ = ["THEMES", "VIEW_M", "Lot", "Street", "crossings", "lots", "make_street"]

VIEW_M = 100.0
LANE_M = 3.2
# What a drive is sure to show, besides what every street may have. Cycling through them keeps rare classes
# present in every split without making them common.
THEMES = (
    "bus near",
    "riders",
    "wall",
    "plain",
    "train ahead",
    "motorcycles",
    "fence",
    "truck near",
    "crowd",
    "bus ahead",
    "signals",
    "wall",
    "train near",
    "open",
    "motorcyclists",
    "truck ahead",
    "fence",
    "cyclists",
    "crossing",
)
_DISTRICTS: dict[str, tuple[tuple[str, int], ...]] = {
    "centre": (("building", 30), ("wall", 2), ("fence", 2), ("park", 6), ("gap", 1)),
    "suburb": (("building", 6), ("house", 14), ("wall", 6), ("fence", 7), ("hedge", 6), ("park", 7), ("parking", 2)),
    "works": (("hall", 10), ("wall", 9), ("fence", 9), ("parking", 4), ("park", 3), ("building", 4)),
    "edge": (("park", 16), ("wall", 5), ("guard rail", 6), ("fence", 4), ("house", 4), ("hall", 3), ("field", 8)),
}
_LENGTHS = {"building": (9.0, 24.0), "house": (11.0, 18.0), "hall": (22.0, 45.0), "gap": (3.0, 7.0)}


@dataclass(frozen=True)
class Street:
    """Cross-section in metres from the ego lane's centre (left negative) and the drive's traits."""

    rng: Rng
    theme: str
    district: str
    road: tuple[float, float]
    walk: tuple[float, float]
    strip: tuple[str, str]
    bend: float
    lanes: tuple[int, int]
    asphalt: Colour
    paving: Colour
    paved: str
    rails: float | None
    crossing_every: float
    step: float
    weather: Weather
    clutter: float

    def edge(self, side: int) -> float:
        """Where the carriageway ends on this side."""
        return self.road[0] if side < 0 else self.road[1]

    def front(self, side: int) -> float:
        """Where the lots begin on this side: behind strip and sidewalk."""
        index = 0 if side < 0 else 1
        return self.edge(side) + side * (self.walk[index] + (2.2 if self.strip[index] != "none" else 0.0))


@dataclass(frozen=True)
class Lot:
    """A stretch of one side of the street."""

    kind: str
    side: int
    start: float
    end: float
    rng: Rng


def make_street(rng: Rng, city: Rng, theme: str, clutter: float) -> Street:
    """Draw a drive's street; `city` fixes what the city's streets have in common."""
    district = rng.weighted((("centre", 9), ("suburb", 6), ("works", 3), ("edge", 3)))
    if theme in ("open",):
        district = "edge"
    rails = theme.startswith("train") or rng.fork("rails").chance(0.1)
    left, right = rng.weighted((((1, 0), 6), ((1, 1), 3), ((2, 1), 3), ((2, 0), 2)))
    if rails or theme in ("bus near", "truck near"):
        left, right = 2, right
    road = (-(left + 0.5) * LANE_M, (right + 0.5) * LANE_M)
    asphalt = vary(city, city.choice(ASPHALT), 8)
    asphalt = vary(rng, asphalt, 10)
    paving = mix(asphalt, rng.choice(((184, 174, 162), (172, 162, 154), (176, 146, 124))), rng.integer(190, 256))
    strips = (("none", 5), ("parking", 3), ("grass", 3))
    return Street(
        rng=rng,
        theme=theme,
        district=district,
        road=road,
        walk=(rng.uniform(2.6, 5.5), rng.uniform(2.6, 5.5)),
        strip=(rng.weighted(strips), rng.weighted(strips)),
        bend=rng.weighted(((0.0, 5), (1.0, 2), (-1.0, 2))) * rng.uniform(0.0004, 0.0024),
        lanes=(left, right),
        asphalt=asphalt,
        paving=paving,
        paved=rng.weighted((("slabs", 4), ("small slabs", 4), ("asphalt", 1))),
        rails=-LANE_M if rails else None,
        crossing_every=rng.uniform(45.0, 95.0),
        step=rng.uniform(1.6, 3.2),
        weather=make_weather(rng.fork("weather")),
        clutter=clutter,
    )


def crossings(street: Street, low: float, high: float) -> list[tuple[float, float]]:
    """(start, end) of the side streets that meet this stretch."""
    found = []
    phase = street.rng.fork("crossing").uniform(0.25, 0.75)
    if street.theme in ("crossing", "signals"):
        phase = 14.0 / street.crossing_every
    first = int(low // street.crossing_every) - 1
    for index in range(first, int(high // street.crossing_every) + 2):
        centre = (index + phase) * street.crossing_every
        half = street.rng.fork("crossing", index).uniform(3.5, 6.0)
        if centre + half > low and centre - half < high:
            found.append((centre - half, centre + half))
    return found


def lots(street: Street, side: int, upto: float) -> list[Lot]:
    """Lots of one side from behind the start of the drive on; a longer street only adds lots at its end."""
    weights = _DISTRICTS[street.district]
    found: list[Lot] = []
    at, index = -26.0, 0
    forced = _forced_lot(street, side)
    cuts = crossings(street, -40.0, upto + 60.0)
    while at < upto:
        rng = street.rng.fork("lot", side, index)
        kind = forced if forced and (index % 5 < 3) else rng.weighted(weights)
        length = rng.uniform(*_LENGTHS.get(kind, (9.0, 26.0)))
        start, end = at, at + length
        for low, high in cuts:
            if start < high and end > low:
                end = max(low, start)
                at_next = high
                break
        else:
            at_next = end
        if end - start > 1.5:
            found.append(Lot(kind, side, start, end, rng))
        at, index = at_next, index + 1
    return found


def _forced_lot(street: Street, side: int) -> str | None:
    if street.theme in ("wall", "fence"):
        both = street.rng.fork("both").chance(0.4)
        chosen = street.rng.fork("side").choice((-1, 1))
        return street.theme if both or side == chosen else None
    return None
