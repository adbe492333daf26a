"""Where images come from and who may use them: typed settings of `prepare` (no heavy imports here)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hmsa_core.config import Count, Names, PositiveInt, Section, Share
from hmsa_core.io.errors import did_you_mean

MAX_PIXELS = 64_000_000  # pixels; ceiling that is checked from the header, before anything is decoded

Kind = Literal["cityscapes", "mapillary", "camvid", "folder", "plain"]
Role = Literal["learn", "calibrate", "report", "guard"]
BlockRule = Literal["city", "sequence", "run", "image"]

_SPLITS = {
    "cityscapes": ("train", "val", "test", "train_extra"),
    "mapillary": ("training", "validation", "testing"),
    "camvid": ("train", "val"),
}


class OnlyFor(frozenset[str]):
    """Mark of a field that only these layouts read: `config show` leaves it out for the others (none: for all)."""

    def __new__(cls, *kinds: str) -> Self:
        """The names of the layouts."""
        return super().__new__(cls, kinds)


_Folder = Annotated[str, OnlyFor("folder", "plain")]
_Plain = Annotated[str, OnlyFor("plain")]


class Deal(Section):
    """How labelled images are dealt to roles: whole units, by a hash of the unit's name."""

    number: Count = Field(0, description="another number is another deal")
    frames: Count = Field(0, description="frames of a sequence that are dealt together; 0 = whole sequences")
    guard_frames: Count = Field(0, description="frames; a learning image this close to a judged unit is not used")
    calibrate: Share = Field(0.2, description="share of units that measure thresholds")
    report: Share = Field(0.2, description="share of units that judge")
    unlabelled: Share = Field(0.0, description="share of units whose labels are set aside: to be auto-labelled")

    @model_validator(mode="after")
    def _some_learn(self) -> Self:
        if self.calibrate + self.report + self.unlabelled >= 1.0:
            raise ValueError("the shares calibrate, report and unlabelled leave no unit to learn from")
        return self


class SourceSpec(Section):
    """One data set on disk, in one of the layouts of docs/data.md.

    `root` is a folder (relative ones against the workspace); indexes hold paths relative to it under `name`.
    """

    kind: Kind = Field(
        "cityscapes", description="cityscapes, mapillary, camvid, folder or plain (layouts: docs/data.md)"
    )
    root: str = Field("", description="folder, relative to this file or absolute; or an s3://, gs:// or az:// address")
    name: Annotated[str, OnlyFor()] = Field(
        "target", pattern=r"^[a-z][a-z0-9_-]*$", description="of the root, in indexes"
    )
    splits: Annotated[Names | None, OnlyFor("cityscapes", "mapillary", "folder")] = Field(
        None, description="null = all that are there (kind folder: the files lie in images/ itself)"
    )
    variant: Annotated[str | None, OnlyFor("mapillary", "camvid")] = Field(
        None, description="mapillary: v1.2 or v2.0 (null = v1.2 where both are there); camvid: default or drive_shift"
    )
    test_is_labelled: Annotated[bool, OnlyFor("cityscapes")] = Field(
        False, description="`test` holds real labels (the release's own are dummies)"
    )
    images: _Folder = Field("images", description="folder below root; in it `<split>/` folders if `splits` is given")
    labels: _Folder = Field(
        "labels", description='folder below root, same stems; "" = none; a split without a folder there is unlabelled'
    )
    coarse: _Folder = Field("", description='folder below root: coarse labels, same stems; "" = none')
    new: _Plain = Field("", description='folder below root: images to be labelled; "" = none')
    image_name: _Plain = Field(
        "*", description="names of images without ending: [FOLDER/]START*END or START*MIDDLE*END; * = what is shared"
    )
    label_name: _Plain = Field("*", description="names of label maps in the same form, such as *_mask")
    coarse_name: _Plain = Field("*", description="names of coarse label maps in the same form")
    classes: _Folder = Field(
        "classes.json",
        description="class file, relative to root (kind plain: to the workspace); or cityscapes, mapillary_v1.2, ...",
    )
    table: _Plain = Field(
        "", description="CSV in the workspace with split, sequence and frame of images whose names do not say it"
    )
    split_roles: Annotated[dict[str, Role], OnlyFor("plain")] = Field(
        default_factory=dict, description="roles of labelled images by split (train, val, test); others are dealt"
    )
    deal: Annotated[Deal, OnlyFor("plain")] = Deal()
    names: Annotated[Literal["stem", "path"], OnlyFor("folder", "plain")] = Field(
        "stem", description="stem, or path = the split's folders and the stem, drive2__cam0__000001"
    )
    pattern: _Folder = Field(
        "", description="regular expression on the name with groups city, sequence, frame (any of them)"
    )
    block: Annotated[BlockRule | None, OnlyFor("cityscapes", "camvid", "folder", "plain")] = Field(
        None, description="unit of resampling: city, sequence, run or image; null = the layout's own"
    )
    block_frames: Annotated[PositiveInt | None, OnlyFor("cityscapes", "camvid", "folder", "plain")] = Field(
        None, description="images in a run of consecutive frames; null = the layout's own (camvid 3, else 10)"
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=MAX_PIXELS, description="pixels; a larger image is quarantined before it is decoded"
    )
    max_bad: Share = Field(
        0.05, description="share of refused images that stops the stage (ten never do; 0 = any does)"
    )
    max_bad_images: Annotated[Count, OnlyFor("folder")] = Field(
        10, description="so few never do, unless `max_bad` is 0 or none is left"
    )
    near_duplicate_bits: int = Field(
        4, ge=0, le=16, description="bits of 64; perceptual hashes this close are reported as near duplicates"
    )

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
    def folders(self) -> tuple[str, ...]:
        """Folders below the root that kind `plain` reads; empty for the other layouts, which own their root."""
        if self.kind != "plain":
            return ()
        return tuple(dict.fromkeys(folder for folder in (self.images, self.labels, self.coarse, self.new) if folder))

    @property
    def has_labels(self) -> bool:
        """Whether label maps are there to learn from and to judge by."""
        return self.kind != "plain" or bool(self.labels)

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

    learn_splits: Names = Field(
        ("train", "val", "training", "all"), description="splits whose fine images learn, but for those named below"
    )
    report_splits: Names = Field((), description="splits that are only ever judged on")
    calibrate: Names = Field(
        (), description="cities or sequences for curves, thresholds and win rates: no model learns them"
    )
    report: Names = Field((), description="cities or sequences to judge on, besides report_splits")
    unlabelled_splits: Names | None = Field(
        None, description="splits to auto-label; null = every split without fine labels but the test splits"
    )
    cv: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="released cross-validation split 0..3 (its cities report); null = off"
    )
    guard_frames: Count = Field(
        0, description="frames; a learning image this close to a judged one in its sequence is used for nothing"
    )

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
