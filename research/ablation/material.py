"""What a cell's result is determined by: settings as the workspace has them, and code; the cell's key is their digest.

A cell is (ablation, row, seed). Nothing here reads images, labels or weights, so that a fresh clone can tell which
of the committed cells are its own before it has made any data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hmsa_core.config import PseudoConfig, RuntimeConfig, TrainConfig, key_material
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.init import GENERATED
from pipeline.params import Params, PretrainConfig, TeacherConfig
from research.ablation.code import source_digests
from research.ablation.plan import Labels, Row, Training

__all__ = ["Material", "Scale", "cell_material", "recipe_material", "train_config", "without_roots"]


@dataclass(frozen=True)
class Scale:
    """How much of the full length is trained (1 = as params.yaml says), and how the machine is used (not in keys)."""

    epochs: float = 1.0
    ranks: int | None = None
    workers: int | None = None

    def of_machine(self, runtime: RuntimeConfig) -> RuntimeConfig:
        """The runtime with the ranks and workers that were asked for."""
        asked = {"ranks": self.ranks, "workers": self.workers}
        return runtime.model_copy(update={name: value for name, value in asked.items() if value is not None})


@dataclass(frozen=True)
class Material:
    """Settings and code of a cell."""

    settings: dict[str, Any]
    code: dict[str, str]  # file -> digest

    @property
    def settings_digest(self) -> str:
        """Sixteen hex digits of the settings alone."""
        return atomic.digest(self.settings)[:16]

    @property
    def key(self) -> str:
        """Sixteen hex digits of settings and code."""
        return atomic.digest({"settings": self.settings, "code": self.code})[:16]


def train_config(params: Params, training: Training, seed: int, scale: Scale) -> TrainConfig:
    """The recipe with the training's changes, its seed and length.

    Raises:
        ConfigError: a change that the recipe does not allow.
    """
    section: TrainConfig = getattr(params, training.recipe)
    values = section.model_dump(include=set(TrainConfig.model_fields))
    # Fine labels only: the key must not depend on settings of a half that is not there.
    values["pseudo"] = (_pseudo(params, section) if training.labels else PseudoConfig()).model_dump()
    for dotted, value in (*training.changes, ("seed", seed)):
        _set(values, dotted, value)
    whole = values["epochs"]
    values["epochs"] = max(1, round(whole * scale.epochs))
    values["pseudo"]["fine_only_epochs"] = round(values["pseudo"]["fine_only_epochs"] * values["epochs"] / whole)
    values["runtime"] = scale.of_machine(section.runtime).model_dump()
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        setting = ".".join(map(str, (training.recipe, *first["loc"])))
        raise ConfigError(f"{setting}: {first['msg']}") from None


def _pseudo(params: Params, section: TrainConfig) -> PseudoConfig:
    """The student's mixing; its fine-only end in proportion to the length of the recipe in use."""
    mixing = params.student_train.pseudo
    ends = round(mixing.fine_only_epochs * section.epochs / params.student_train.epochs)
    return mixing.model_copy(update={"fine_only_epochs": ends})


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here = values
    for part in parents:
        here = here[part]
    here[last] = value  # one that the recipe does not know is refused when the whole is checked


def cell_material(params: Params, row: Row, seed: int, scale: Scale) -> Material:
    """Everything that decides a row's counts for a seed."""
    settings: dict[str, Any] = {
        "data": without_roots(params.data.model_dump(mode="json")),
        "tile": [params.teacher_train.sampling.tile, params.teacher_train.sampling.min_pixels],
        "setting": row.setting.model_dump(mode="json", exclude={"name"}),
        "judged": params.evaluate.model_dump(mode="json", include={"max_leaked", "max_gap", "max_distance"}),
        "precision": key_material(params.evaluate.runtime),
    }
    groups: tuple[str, ...] = ("train", "evaluate")
    if row.training is None:
        settings["teacher"] = _teacher(params)
    else:
        training = row.training
        settings["training"] = key_material(train_config(params, training, seed, scale))
        settings["start"] = _teacher(params) if training.start == "teacher" else _pretrain(params)
        if training.labels is not None:
            groups = (*groups, "labels")
            settings["labels"] = training.labels.to_json() | _labelling(params, training.labels)
    if params.profile in GENERATED:
        groups = (*groups, "scenes")
    return Material(settings, source_digests(groups))


def recipe_material(params: Params, rows: tuple[Row, ...], scale: Scale) -> Material:
    """Settings and code of all rows together, without their seeds: what is frozen."""
    settings: dict[str, Any] = {}
    code: dict[str, str] = {}
    for row in rows:
        one = cell_material(params, row, 0, scale)
        settings[row.name], code = one.settings, code | one.code
    return Material(settings, code)


def without_roots(data: Mapping[str, Any]) -> dict[str, Any]:
    """Data settings without where the data lie."""
    return {
        name: {k: v for k, v in part.items() if k != "root"} if isinstance(part, Mapping) else part
        for name, part in data.items()
    }


def _pretrain(params: Params) -> dict[str, Any]:
    has_set = params.data.pretrain is not None
    return {"pretrain": _recipe(params.teacher_pretrain) if has_set else None}


def _teacher(params: Params) -> dict[str, Any]:
    return _pretrain(params) | {"teacher": _recipe(params.teacher_train)}


def _recipe(config: PretrainConfig | TeacherConfig) -> dict[str, Any]:
    return key_material(config) | {"init_from": config.init_from}


def _labelling(params: Params, labels: Labels) -> dict[str, Any]:
    """How the workspace makes auto-labels, threshold and coarse labels aside (the row says those)."""
    calibrate = params.calibrate.model_dump(mode="json")
    if labels.threshold != "policy" or labels.ignored is not None:
        calibrate = {"confidence": calibrate["confidence"]}  # of the merging rules; no threshold comes from the rest
    merge = params.pseudo_label.merge.model_dump(mode="json", exclude={"use_coarse"})
    return _teacher(params) | {
        "calibrate": calibrate,
        "infer": key_material(params.auto_infer),
        "merge": merge | {"min_component": params.pseudo_label.min_component},
        "tile": [params.student_train.sampling.tile, params.student_train.sampling.min_pixels],
    }
