"""Settings of calibration and merging; they are sections of a workspace's params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

from hmsa_core.config import Section
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.codes import ConfidenceCode

__all__ = ["CalibrateConfig", "MergeConfig", "PairRule"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]


class CalibrateConfig(Section):
    """How thresholds are picked from the calibration images."""

    target: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.98  # precision of kept pixels that a class must reach
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.8  # precision in the marginal bin at the cut
    confidence: Annotated[float, Field(ge=0.8, lt=1.0)] = 0.95  # one-sided, of the lower bound on precision
    min_blocks: Annotated[int, Field(ge=3)] = 20  # blocks with the class; fewer: pooled or withheld
    min_components: Count = 30  # connected pieces of the class; fewer: shrink to its group
    min_component_px: Annotated[int, Field(ge=1)] = 16  # pixels at 1024 lines; smaller pieces are no evidence
    marginal_share: Annotated[float, Field(gt=0.0, le=0.5)] = 0.02  # of a class's pixels: size of the marginal bin
    min_coverage: Share = 0.05  # of a class's pixels; a warning when the policy keeps less
    boundary_px: Positive = 8.0  # pixels at 1024 lines (scaled): width of the boundary band
    ceiling_px: Positive = 2.0  # pixels at 1024 lines: band left out for the ceiling of the target
    cross_fit: bool = True  # thresholds are judged on blocks that did not choose them
    folds: Annotated[int, Field(ge=2)] = 5  # of blocks, for cross-fitting
    shift_limit: Share = 0.25  # Kolmogorov-Smirnov distance of confidences; more = "not covered by evidence"
    region: Literal["all", "outside_coarse"] = "all"  # pixels that count: where merged labels take the teacher's word
    overrides: dict[str, str | float] = Field(default_factory=dict)  # class -> threshold, or "withheld"

    @field_validator("overrides")
    @classmethod
    def _overrides_are_thresholds(cls, value: dict[str, str | float]) -> dict[str, str | float]:
        for name, threshold in value.items():
            if threshold == "withheld":
                continue
            try:
                inside = 0.0 <= float(threshold) < 1.0
            except ValueError:
                inside = False
            if not inside:
                raise ValueError(f'overrides.{name}: a threshold in [0, 1) or "withheld", found {threshold!r}')
            try:  # now, not by calibrate after the training of the teacher
                ConfidenceCode().code_for(threshold)
            except ConfigError as error:
                raise ValueError(f"overrides.{name}: {error.message}") from error
        return value

    @model_validator(mode="after")
    def _floor_is_below(self) -> CalibrateConfig:
        if self.floor > self.target:
            raise ValueError("floor must not exceed target")
        return self


class PairRule(Section):
    """What happens where a human polygon says one class and the teacher, surely enough, another."""

    human: str  # class name
    teacher: str  # class name
    action: Literal["human", "ignore", "teacher"]

    @model_validator(mode="after")
    def _two_classes(self) -> PairRule:
        if self.human.lower() == self.teacher.lower():
            raise ValueError(f"a rule is about two classes, found {self.human!r} for both human and teacher")
        return self


class MergeConfig(Section):
    """How final labels are made of human coarse labels and the teacher's."""

    use_coarse: bool = True  # merge coarse labels where an image has them
    default: Literal["human", "ignore"] = "ignore"  # on a conflict without a rule
    rules: Annotated[tuple[PairRule, ...], Strict(False)] = ()  # by hand; they win over measured ones
    measure: bool = True  # find rules from images that have coarse and fine labels and that nobody learned from
    win_rate: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.9  # lower bound that a measured rule needs
    min_blocks: Annotated[int, Field(ge=3)] = 5  # blocks with the pair that a measured rule needs
    mask: str | None = None  # PNG of the static camera mask (0 = ignored), or None
    mask_void_share: Annotated[float, Field(gt=0.5, le=1.0)] | None = 0.9  # measured mask: void in more than this
    mask_min_images: Annotated[int, Field(ge=2)] = 20  # images of a camera that a measured mask needs
