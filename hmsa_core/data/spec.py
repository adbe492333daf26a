"""Where images come from and who may use them: typed settings of `prepare` (no heavy imports here)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from hmsa_core.config import Count, PositiveInt, Section, Share
from hmsa_core.io.errors import did_you_mean

__all__ = ["MAX_PIXELS", "RolesSpec", "SourceSpec"]

MAX_PIXELS = 64_000_000  # pixels; ceiling that is checked from the header, before anything is decoded

Names = Annotated[tuple[str, ...], Strict(False)]
Kind = Literal["cityscapes", "mapillary", "camvid", "folder"]
BlockRule = Literal["city", "sequence", "run", "image"]

_SPLITS = {
    "cityscapes": ("train", "val", "test", "train_extra"),
    "mapillary": ("training", "validation", "testing"),
    "camvid": ("train", "val"),
}


class SourceSpec(Section):
    """One data set on disk, in one of the layouts of docs/data.md.

    `root` is a folder (relative ones against the workspace); indexes hold paths relative to it under `name`.
    """

    kind: Kind = "cityscapes"
    root: str = ""
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "target"  # of the root, in indexes
    splits: Names | None = None  # None = all that are there (mapillary: training and validation)
    variant: str | None = None  # mapillary: v1.2 or v2.0 (None = v1.2 where both are); camvid: default or drive_shift
    test_is_labelled: bool = False  # cityscapes: `test` holds real labels instead of the release's dummies
    official_val: bool = False  # camvid: also index the official val clip (role guard, split val)
    images: str = "images"  # folder: relative to root, in it `<split>/` folders if `splits` is given
    labels: str = "labels"  # folder: same stems; "" = none; a split without a folder there is unlabelled
    coarse: str = ""  # folder: coarse labels with the same stems; "" = none
    classes: str = "classes.json"  # folder: class file, relative to root; or cityscapes, mapillary_v1.2, ...
    names: Literal["stem", "path"] = "stem"  # folder: path = the split's folders and the stem, drive2__cam0__000001
    pattern: str = ""  # folder: regular expression on the name with groups city, sequence, frame (any of them)
    block: BlockRule | None = None  # unit of resampling; None: cityscapes, camvid run; else sequence or image
    block_frames: PositiveInt | None = None  # images in a run; None: camvid 3, else 10
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = MAX_PIXELS
    max_bad: Share = 0.05  # a larger share of refused images stops `prepare`; 0 = one is enough
    max_bad_images: Count = 10  # so few never do, unless `max_bad` is 0
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 4  # perceptual hashes this close are reported

    @model_validator(mode="after")
    def _known(self) -> SourceSpec:
        known = _SPLITS.get(self.kind)
        unknown = [s for s in self.splits or () if known and s not in known]
        if unknown:
            raise ValueError(f"splits: {unknown[0]!r} is not a split of {self.kind}: expected {', '.join(known or ())}")
        variants = {"mapillary": ("v1.2", "v2.0"), "camvid": ("default", "drive_shift")}.get(self.kind, ())
        if self.variant is not None and self.variant not in variants:
            expected = ", ".join(variants) or f"none, {self.kind} has no variants"
            raise ValueError(f"variant: {self.variant!r} is unknown for {self.kind}: expected {expected}")
        return self

    @property
    def run_length(self) -> int:
        """Images in a run of consecutive frames."""
        return self.block_frames or (3 if self.kind == "camvid" else 10)


class RolesSpec(Section):
    """One role for each fine image, decided in this order: calibrate, report, learn; else guard (unused).

    `calibrate` and `report` name cities or sequences (`aachen`, `aachen_000003`, `0016E5`). Images without fine
    labels get `unlabelled` in the splits of `unlabelled_splits`, else guard. CamVid brings its own roles
    (splits.json), so nothing here applies to it.
    """

    learn_splits: Names = ("train", "val", "training", "all")
    report_splits: Names = ()
    calibrate: Names = ()
    report: Names = ()
    unlabelled_splits: Names | None = None  # None = every split but the benchmarks' test splits
    cv: Annotated[int, Field(ge=0, le=3)] | None = None  # released cross-validation split: its val cities report
    guard_frames: Count = 0  # learn images this close (frames, same sequence) to calibrate/report become guard

    @model_validator(mode="after")
    def _one_role_each(self) -> RolesSpec:
        if twice := sorted(set(self.calibrate) & set(self.report)):
            raise ValueError(f"{twice[0]!r} is in both calibrate and report: an image has one role")
        return self

    def check_splits(self, there: Collection[str]) -> None:
        """A split that no layout knows and no image is of is a typing error: ValueError with the nearest name."""
        known = {"all", *there, *(name for names in _SPLITS.values() for name in names)}
        for key in ("learn_splits", "report_splits", "unlabelled_splits"):
            for name in sorted(set(getattr(self, key) or ()) - known):
                hint = did_you_mean(name, known, f"the splits are: {', '.join(sorted(there))}")
                raise ValueError(f"roles.{key}: no image is of split {name!r}; {hint}")
