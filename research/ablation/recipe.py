"""What a training of an ablation is: a section of params.yaml with the row's changes, seed and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hmsa_core.config import PseudoConfig, RuntimeConfig, TrainConfig, key_material
from hmsa_core.io import atomic
from hmsa_core.spec import EvaluationSetting
from pipeline.workspace.params import Params
from research.ablation.plan import Ablation, Training


@dataclass(frozen=True)
class Scale:
    """How much of the full length is trained (1 = as params.yaml says), and how the machine is used."""

    epochs: float = 1.0
    ranks: int | None = None
    workers: int | None = None

    def of_machine(self, runtime: RuntimeConfig) -> RuntimeConfig:
        """The runtime with the ranks and workers that were asked for."""
        given = {"ranks": self.ranks, "workers": self.workers}
        return runtime.model_copy(update={name: value for name, value in given.items() if value is not None})


def how_run(setting: EvaluationSetting, scale: Scale) -> str:
    """The column `setting` of a trained row: mode, scales, flip, and the share of the epochs where not all are run."""
    mode = "" if setting.mode == "model" else f"{setting.mode} "
    flip = " flip" if setting.flip else ""
    share = "" if scale.epochs == 1.0 else f", {scale.epochs:g} of the epochs"
    return f"{mode}{','.join(f'{s:g}' for s in sorted(setting.scales))}{flip}{share}"


def train_config(params: Params, training: Training, seed: int, scale: Scale) -> TrainConfig:
    """The recipe with the training's changes, its seed and length.

    Raises:
        ConfigError: a change that the recipe does not allow.
    """
    section: TrainConfig = getattr(params, training.recipe)
    values = section.model_dump(include=set(TrainConfig.model_fields))
    # Without auto-labels the settings of that half must not be part of the training's key.
    values["pseudo"] = (_pseudo(params, section) if training.labels else PseudoConfig()).model_dump()
    for dotted, value in (*training.changes, ("seed", seed)):
        _set(values, dotted, value)
    whole = values["epochs"]
    values["epochs"] = max(1, round(whole * scale.epochs))
    values["pseudo"]["fine_only_epochs"] = round(values["pseudo"]["fine_only_epochs"] * values["epochs"] / whole)
    values["runtime"] = scale.of_machine(section.runtime).model_dump()
    return TrainConfig.checked(values, training.recipe)


def _pseudo(params: Params, section: TrainConfig) -> PseudoConfig:
    """The student's mixing; its end on fine labels alone in proportion to the length of the recipe in use."""
    mixing = params.student_train.pseudo
    ends = round(mixing.fine_only_epochs * section.epochs / params.student_train.epochs)
    return mixing.model_copy(update={"fine_only_epochs": ends})


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here = values
    for part in parents:
        here = here[part]
    here[last] = value  # one that the recipe does not know is refused when the whole is checked


def recipe_digest(params: Params, ablation: Ablation, scale: Scale) -> str:
    """Sixteen hex digits of what a freeze holds still: trainings, labels, settings and differences of all rows."""
    rows = {}
    for row in ablation.rows:
        training = row.training
        rows[row.name] = {
            "config": training and key_material(train_config(params, training, 0, scale)),
            "start": training and (params.student_train.init if training.start == "teacher" else training.start),
            "labels": training and training.labels and training.labels.to_json(),
            "run": row.setting.model_dump(mode="json"),
        }
    sections = (params.teacher_train, params.auto_infer, params.calibrate, params.pseudo_label)
    return atomic.digest([rows, ablation.differences, [key_material(section) for section in sections]])[:16]
