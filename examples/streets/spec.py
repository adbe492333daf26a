"""What to generate: sizes, cities and sequences of each split, how many Vistas-like pictures, which defects."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from hmsa_core.io.errors import ConfigError

__all__ = ["CALIBRATION_CITIES", "City", "DemoSpec", "default_spec"]

SPLITS = ("train", "val", "test", "train_extra")
# Cities with fine labels that profile demo takes out for calibration (tiny: ulm and zurich); two are left to learn.
CALIBRATION_CITIES = (
    "bochum",
    "bremen",
    "frankfurt",
    "hamburg",
    "jena",
    "lindau",
    "munster",
    "stuttgart",
    "tubingen",
    "ulm",
    "weimar",
    "zurich",
)


@dataclass(frozen=True)
class City:
    """One city of a split: `sequences` drives of `frames` pictures each.

    `long` cities have one sequence number and many frame numbers, like bochum or frankfurt in the release.
    """

    split: str
    name: str
    sequences: int
    frames: int = 1


@dataclass(frozen=True)
class DemoSpec:
    """Everything that the generated files depend on, besides the generator's own version.

    Sizes are (width, height) in pixels. `supersample` sub-pixels per pixel and axis soften the edges. `clutter` in
    [0, 1] thins out what every street may have (parked cars, walkers, poles); what a drive is about stays.
    """

    seed: int = 1
    size: tuple[int, int] = (256, 128)
    supersample: int = 2
    clutter: float = 1.0
    cities: tuple[City, ...] = ()
    vistas_training: int = 0
    vistas_validation: int = 0
    vistas_sizes: tuple[tuple[int, int], ...] = ((288, 216), (320, 240), (216, 288), (320, 180))
    vistas_v2: bool = False
    jpeg_quality: tuple[int, int] = (68, 92)
    coarse_splits: tuple[str, ...] = ("train", "val", "train_extra")
    defects: bool = False

    def __post_init__(self) -> None:
        sizes = (self.size, *self.vistas_sizes)
        if any(side < 32 or side > 8192 for size in sizes for side in size):
            raise ConfigError(f"demo data: size or vistas_sizes has a side outside 32..8192 pixels: {sizes}")
        if not 0.0 <= self.clutter <= 1.0:
            raise ConfigError(f"demo data: clutter is {self.clutter}, expected 0 to 1")
        if not 1 <= self.supersample <= 4:
            raise ConfigError(f"demo data: supersample is {self.supersample}, expected 1 to 4")
        seen: set[tuple[str, str]] = set()
        for city in self.cities:
            if city.split not in SPLITS:
                raise ConfigError(f"demo data: city {city.name} has split {city.split!r}, expected one of {SPLITS}")
            if "_" in city.name or city.sequences < 1 or city.frames < 1 or (city.split, city.name) in seen:
                raise ConfigError(
                    f"demo data: city {city.name!r} of {city.split} is listed twice, has an underscore or no pictures"
                )
            seen.add((city.split, city.name))

    def count(self, split: str) -> int:
        """Number of Cityscapes-like pictures of a split (planted defects not counted)."""
        return sum(city.sequences * city.frames for city in self.cities if city.split == split)

    def to_json(self) -> dict[str, object]:
        """Plain values for the stamp; equal specs give equal values."""
        values = asdict(self)
        return {key: _plain(value) for key, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class _Counts:
    """Sequences and frames by city."""

    split: str
    cities: dict[str, tuple[int, int]] = field(default_factory=dict)


_DEMO = (
    _Counts(
        "train",
        {
            "aachen": (16, 1),
            "bochum": (1, 9),
            "bremen": (14, 1),
            "cologne": (12, 1),
            "hamburg": (1, 9),
            "jena": (12, 1),
            "stuttgart": (12, 1),
            "tubingen": (12, 1),
            "ulm": (12, 1),
            "weimar": (12, 1),
            "zurich": (12, 1),
        },
    ),
    _Counts("val", {"frankfurt": (2, 6), "lindau": (8, 1), "munster": (10, 1)}),
    _Counts(
        "test",
        {
            "berlin": (7, 2),
            "bielefeld": (7, 2),
            "bonn": (7, 2),
            "leverkusen": (7, 2),
            "mainz": (7, 2),
            "munich": (7, 2),
        },
    ),
    _Counts(
        "train_extra",
        {
            "augsburg": (12, 1),
            "bad-honnef": (10, 1),
            "bamberg": (12, 1),
            "dortmund": (14, 1),
            "dresden": (12, 1),
            "erlangen": (12, 1),
            "heidelberg": (4, 3),
            "konstanz": (12, 1),
            "muhlheim-ruhr": (10, 1),
            "troisdorf": (6, 1),
            "wuppertal": (8, 1),
        },
    ),
)
_TINY = (
    _Counts(
        "train",
        {"aachen": (4, 1), "bochum": (1, 4), "jena": (4, 1), "stuttgart": (4, 1), "ulm": (4, 1), "zurich": (4, 1)},
    ),
    _Counts("val", {"frankfurt": (1, 3), "lindau": (3, 1)}),
    _Counts("test", {"berlin": (5, 1), "munich": (5, 1)}),
    _Counts("train_extra", {"augsburg": (4, 1), "bad-honnef": (4, 1), "troisdorf": (4, 1)}),
)


def _cities(plan: tuple[_Counts, ...]) -> tuple[City, ...]:
    return tuple(
        City(counts.split, name, sequences, frames)
        for counts in plan
        for name, (sequences, frames) in counts.cities.items()
    )


def default_spec(profile: Literal["tiny", "demo"]) -> DemoSpec:
    """The data of `autolabel demo-data` for a profile; any other name is a ConfigError."""
    if profile == "demo":
        return DemoSpec(cities=_cities(_DEMO), vistas_training=96, vistas_validation=8, clutter=0.6, defects=True)
    if profile == "tiny":
        return DemoSpec(
            size=(128, 64),
            cities=_cities(_TINY),
            clutter=0.6,
            vistas_training=8,
            vistas_validation=2,
            vistas_sizes=((144, 108), (108, 144), (160, 90)),
            defects=True,
        )
    raise ConfigError(f"demo data: there is no profile {profile!r}, expected tiny or demo")
