"""Settings of calibration and merging; they are sections of a workspace's params.yaml."""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

from hmsa_core.config import Count, Positive, Section, Share
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.codes import ConfidenceCode

RULES = [str(Path(__file__).with_name("rules"))]  # folders of rules, as the package `rules` has them


def rule_names() -> list[str]:
    """Names of all rules, sorted; none is imported."""
    return sorted(module.name for module in iter_modules(RULES))


class CalibrateConfig(Section):
    """How thresholds are picked from the calibration images."""

    rule: str = Field("promise", description="how thresholds are chosen: a file of hmsa_core/labels/thresholds/rules")
    target: float = Field(0.98, gt=0.5, lt=1.0, description="precision of kept pixels that a class must reach")
    tau: float = Field(
        0.7, gt=0.0, lt=1.0, description="rule teach: probability to be right that the least sure kept pixel has"
    )
    floor: float = Field(
        0.8,
        ge=0.0,
        lt=1.0,
        description="precision in the marginal bin at the threshold: easy pixels must not pay for coin flips",
    )
    confidence: float = Field(0.95, ge=0.8, lt=1.0, description="one-sided, of the lower bound on precision")
    min_blocks: int = Field(20, ge=3, description="blocks with the class; fewer: pooled with its group or withheld")
    min_components: Count = Field(30, description="connected pieces of the class; fewer: shrunk to its group")
    min_component_px: int = Field(16, ge=1, description="pixels at 1024 lines; smaller pieces are no evidence")
    marginal_share: float = Field(0.02, gt=0.0, le=0.5, description="of a class's pixels: size of the marginal bin")
    min_coverage: Share = Field(0.05, description="of a class's pixels; a warning when the policy keeps less")
    boundary_px: Positive = Field(8.0, description="pixels at 1024 lines (scaled); width of the boundary band")
    ceiling_px: Positive = Field(2.0, description="pixels at 1024 lines; band left out for the ceiling of the target")
    cross_fit: bool = Field(True, description="thresholds are judged on blocks that did not choose them")
    folds: int = Field(5, ge=2, description="of blocks, for cross-fitting")
    shift_limit: Share = Field(
        0.25, description="KS distance of a class's confidences to calibration's; more = \"not covered by evidence\""
    )
    region: Literal["all", "outside_coarse"] = Field(
        "all", description="which pixels count (all or outside_coarse, where merged labels need the teacher)"
    )
    overrides: dict[str, str | float] = Field(
        default_factory=dict, description="class name: threshold on the grid, or withheld"
    )

    @field_validator("rule")
    @classmethod
    def _rule_exists(cls, value: str) -> str:
        if value not in rule_names():
            raise ValueError(f"expected one of {', '.join(rule_names())}, found {value!r}")
        return value

    @field_validator("overrides")
    @classmethod
    def _overrides_are_thresholds(cls, value: dict[str, str | float]) -> dict[str, str | float]:
        for name, threshold in value.items():
            if threshold == "withheld":
                continue
            try:  # now, not by calibrate after the training of the teacher
                ConfidenceCode().code_for(threshold)
            except ConfigError as error:
                expected = 'expected a threshold in [0, 1) or "withheld"'
                raise ValueError(f"overrides.{name}: {error.message}; {expected}") from error
        return value

    @model_validator(mode="after")
    def _floor_is_below(self) -> CalibrateConfig:
        if self.floor > self.target:
            raise ValueError("floor must not exceed target")
        return self


class PairRule(Section):
    """What happens where a human polygon says one class and the teacher, surely enough, another."""

    human: str = Field(description="class name")
    teacher: str = Field(description="class name")
    action: Literal["human", "ignore", "teacher"] = Field(description="human, ignore (255) or teacher")

    @model_validator(mode="after")
    def _two_classes(self) -> PairRule:
        if self.human.lower() == self.teacher.lower():
            raise ValueError(f"human and teacher of a rule must be different classes, both are {self.human!r}")
        return self


class MergeConfig(Section):
    """How final labels are made of human coarse labels and the teacher's."""

    use_coarse: bool = Field(True, description="merge human coarse labels where an image has them")
    default: Literal["human", "ignore"] = Field(
        "ignore", description="on a conflict without a rule: ignore (255) or human"
    )
    rules: Annotated[tuple[PairRule, ...], Strict(False)] = Field(
        (), description="by hand: {human: CLASS, teacher: CLASS, action: human, ignore or teacher}"
    )
    measure: bool = Field(True, description="find rules on images with coarse and fine labels that nobody learned from")
    win_rate: float = Field(0.9, gt=0.5, lt=1.0, description="lower bound that a measured rule needs")
    min_blocks: int = Field(5, ge=3, description="blocks with the pair that a measured rule needs")
    mask: str | None = Field(
        None, description="PNG of the static camera mask (0 = ignored), best kept in policies/; null = none given"
    )
    mask_void_share: Annotated[float, Field(gt=0.5, le=1.0)] | None = Field(
        0.9, description="measured mask: void in more than this share of fine images; null = off"
    )
