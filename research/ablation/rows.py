"""Rows that several tables have: whole trainings from the pretraining, fused in one way on some sets of scales."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hmsa_core.spec import EvaluationSetting
from pipeline.params import Params
from research.ablation.plan import Labels, Row, Training

__all__ = [
    "PAIRS",
    "SETS",
    "Changes",
    "from_pretraining",
    "from_teacher",
    "main_row",
    "scale_rows",
    "set_name",
    "setting",
]

SETS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
PAIRS = ((0.25, 1.0), (1.0, 2.0))  # with {0.5, 1}: what one more scale brings into an average
Changes = tuple[tuple[str, Any], ...]


def setting(name: str, scales: tuple[float, ...], *, flip: bool = False, mode: str = "model") -> EvaluationSetting:
    """A way to run a model, by the name of its row."""
    return EvaluationSetting.model_validate({"name": name, "scales": scales, "flip": flip, "mode": mode})


def main_row(name: str, title: str, training: Training | None, params: Params, mode: str | None = None) -> Row:
    """A row that is run in the workspace's main setting."""
    changes = {"name": name} | ({"mode": mode} if mode else {})
    return Row(name, title, training, params.evaluate.settings[0].model_copy(update=changes))


def from_pretraining(kind: str, *changes: tuple[str, Any], labels: Labels | None = None) -> Training:
    """A whole training of a kind of model by the teacher's recipe."""
    return Training("teacher_train", "pretrain", (("model.kind", kind), *changes), labels)


def from_teacher(changes: Changes = (), labels: Labels | None = None) -> Training:
    """A training by the student's recipe."""
    return Training("student_train", "teacher", changes, labels)


def set_name(scales: Iterable[float]) -> str:
    """0.5-1-2."""
    return "-".join(f"{s:g}" for s in scales)


def scale_rows(
    name: str,
    kind: str,
    sets: Iterable[tuple[float, ...]] = SETS,
    *,
    mode: str = "model",
    prefix: str = "",
    told: str = "",
    changes: Changes = (),
) -> list[Row]:
    """One training, run on each set of scales; `prefix` and `told` stand before the rows' names and titles."""
    rows = []
    for scales in sets:
        own = f"{prefix}{name}-{set_name(scales)}"
        title = f"{told}{name}, {{{', '.join(f'{s:g}' for s in scales)}}}"
        rows.append(Row(own, title, from_pretraining(kind, *changes), setting(own, scales, mode=mode)))
    return rows
