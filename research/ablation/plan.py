"""What a row of an ablation is: a training, the labels of its auto-labelled half, a way to run the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hmsa_core.io.errors import ConfigError
from hmsa_core.spec import EvaluationSetting

# Stages of dvc.yaml that have to be done before the first training.
Needs = Literal["teacher-pretrain", "pseudo-label"]


@dataclass(frozen=True)
class Labels:
    """Labels of the auto-labelled half of an epoch.

    Attributes:
        threshold: "policy" or "teach" (measured), a number on the code grid, "none": no pixel of the teacher passes,
            so that with `coarse` the human labels stay as drawn; or "truth": the maps of `only`, the ceiling.
        coarse: merge the human coarse labels.
        ignored: instead of `threshold`: the number on the grid that leaves out about this share of the pixels.
        only: folder of label maps NAME.png below the target's root: only images with a map there are learned from.
        conflict: with `coarse`, what a pixel without a rule becomes on which human and teacher disagree; None = as the
            profile has it.
    """

    threshold: float | Literal["policy", "teach", "none", "truth"] = "policy"
    coarse: bool = False
    ignored: float | None = None
    conflict: Literal["human"] | None = None
    only: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For keys and records; what is not set is left out."""
        chosen = {key: value for key in ("conflict", "only") if (value := getattr(self, key))}
        return {"threshold": self.threshold, "coarse": self.coarse, "ignored": self.ignored, **chosen}


@dataclass(frozen=True)
class Training:
    """One training; rows with the same one share its checkpoint.

    Attributes:
        recipe: section of params.yaml that it follows.
        start: "pretrain" (from scratch where a profile has no pretraining set), or "teacher": where the
            workspace's student starts (student_train.init).
        changes: dotted keys of the recipe and their values.
        labels: the auto-labelled half; None = fine labels only, the same number of crops.
    """

    recipe: Literal["teacher_train", "student_train"]
    start: Literal["pretrain", "teacher"]
    changes: tuple[tuple[str, Any], ...] = ()
    labels: Labels | None = None


@dataclass(frozen=True)
class Row:
    """One row: `training` None means the workspace's teacher as it is (no seed of its own)."""

    name: str
    training: Training | None
    setting: EvaluationSetting

    @property
    def is_seeded(self) -> bool:
        """Whether another seed gives another result."""
        return self.training is not None


@dataclass(frozen=True)
class Ablation:
    """A table: rows, the differences (row, baseline) that it is made for, and what a workspace must hold."""

    name: str
    title: str
    needs: Needs
    rows: tuple[Row, ...]
    differences: tuple[tuple[str, str], ...]
    ceiling: str | None = None  # row that has all that can be gained: other gains are told as a share of its own

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        known = set(names)
        stray = [pair for pair in self.differences if set(pair) - known]
        if len(known) != len(names) or stray:
            raise AssertionError(f"ablation {self.name}: names {names}, differences of unknown rows {stray}")

    def pick(self, names: Sequence[str] | None) -> tuple[Row, ...]:
        """The named rows in the table's order (None = all); an unknown name is a ConfigError."""
        if names is None:
            return self.rows
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise ConfigError(f"ablation {self.name} has no row {name!r}: choose from {', '.join(known)}")
        return tuple(row for row in self.rows if row.name in set(names))
