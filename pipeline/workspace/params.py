"""params.yaml as typed sections: one section per stage, one line of explanation for every mistake.

Only the pipeline reads params.yaml: a job of `hmsa_core` gets a spec file. This module does not import torch.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, Strict, ValidationError, create_model, field_validator, model_validator

from hmsa_core.config import (
    Count,
    GateConfig,
    InferConfig,
    NotInKey,
    PositiveInt,
    RuntimeConfig,
    Section,
    Share,
    Teacher,
    TrainConfig,
    setting,
)
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.io.engine import Kind
from hmsa_core.io.errors import ConfigError, did_you_mean, one_line
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.thresholds.settings import CalibrateConfig, MergeConfig
from hmsa_core.spec import EvaluationSetting, EvaluationSettings
from pipeline.workspace.table import TABLE, Stage
from pipeline.workspace.yaml_text import Document, Key, dotted, read_yaml

Profile = Literal["tiny", "demo", "camvid", "cityscapes", "paper-final", "own"]
PROFILES: tuple[str, ...] = typing.get_args(Profile)[:-1]  # those with a file; `own` is planned from folders
TRAININGS = ("teacher_pretrain", "teacher_train", "student_train")  # sections that inherit from `train`
_ONLY_WRITTEN: dict[Key, tuple[str, ...]] = {(): ("train",), ("runtime",): ("engine",)}  # keys in no section class
RUNNING = (*TRAININGS, "auto_infer", "evaluate")  # sections that inherit from `runtime`
Workers = Annotated[PositiveInt, NotInKey]
Start = Annotated[str | None, NotInKey]  # a key holds the digest of the start weights instead
# Names that pseudo_label.threshold accepts -> file that `calibrate` makes.
MEASURED_POLICIES = {"policy": "calibration/policy.json", "teach": "calibration/teach.json"}


class DataConfig(Section):
    """Where the data lie and which image does what."""

    target: SourceSpec = Field(description="the data set whose classes are learned and labelled")
    pretrain: SourceSpec | None = setting(
        None, "the data set for pretraining; null = none, teacher-train starts from scratch"
    )
    roles: RolesSpec = setting(RolesSpec(), "who may use which image (camvid brings its own roles)")

    @model_validator(mode="before")
    @classmethod
    def _name_roots(cls, value: Any) -> Any:
        """Set the names of the roots: indexes and checkpoints use these names, so a user cannot choose them."""
        if not isinstance(value, dict):
            return value
        named = {
            name: {**source, "name": name}
            for name, source in value.items()
            if name in ("target", "pretrain") and isinstance(source, dict) and "name" not in source
        }
        return {**value, **named}

    @model_validator(mode="after")
    def _names_are_kept(self) -> DataConfig:
        for name, source in (("target", self.target), ("pretrain", self.pretrain)):
            if source is not None and source.root.startswith("~"):
                raise ValueError(f"expected {name}.root as a path written out, found {source.root}: DVC expands no ~")
            if source is not None and source.name != name:
                raise ValueError(f"{name}.name must be {name} (leave the key out)")
        return self


class EngineConfig(Section):
    """Who runs the work units of prepare, auto-infer and pseudo-label. No result depends on it."""

    engine: Annotated[Kind, NotInKey] = setting(
        "local",
        "local (processes of this machine) or ray (docs/scaling.md), for prepare, calibrate, auto-infer and"
        " pseudo-label",
    )


class PrepareConfig(Section):
    """Indexing and checking; `data` describes the checks of each data set."""

    workers: Workers = setting(2, "processes")


class PretrainConfig(TrainConfig):
    """Training on the pretraining set: a single scale, no attention."""

    init_from: Start = setting(
        None, "checkpoint folder (`autolabel import-checkpoint`) to start from; null = from scratch"
    )


class TeacherConfig(TrainConfig):
    """Training on the target set's fine labels, from the pretraining checkpoint where there is one."""

    skip: Annotated[bool, NotInKey] = setting(
        False, "train no teacher: auto_infer.teacher labels; `teacher_train: null` means the same"
    )
    validate_every: Annotated[Count, NotInKey] = setting(
        0, "epochs; scores on role calibrate for log and plot, nothing is chosen by them; 0 = never"
    )
    init_from: Start = setting(
        None, "another checkpoint folder to start from; null = models/pretrain, or from scratch without one"
    )


class OtherStore(Section):
    """Auto-labels of another workspace."""

    store: str = Field(description="its thresholded store (labels/final), relative to this workspace")
    weight: float = setting(1.0, "how often its images are taken: 1 = as own ones", gt=0.0, allow_inf_nan=False)


class StudentConfig(TrainConfig):
    """Training on fine and auto-labelled images."""

    init: Annotated[str, NotInKey] = setting(
        "teacher", "teacher (paper), pretrained (from model.trunk_weights, any trunk), or a checkpoint folder"
    )
    validate_every: Annotated[Count, NotInKey] = setting(
        0, "epochs; scores on role calibrate for log and plot, nothing is chosen by them; 0 = never"
    )
    max_rounds: Annotated[PositiveInt | None, NotInKey] = setting(
        2, "students in a row that learn from each other's auto-labels: the last one does not teach; null = no limit"
    )
    control: Annotated[bool, NotInKey] = setting(
        True, "also train models/control/: same start, same steps, fine labels only"
    )
    stores: Annotated[tuple[OtherStore, ...], Strict(False), NotInKey] = setting(
        (),
        "auto-labels of other workspaces to learn from besides its own: a list of {store: folder of"
        " their labels/final, weight: how often its images are taken, the own ones have 1}",
    )

    @model_validator(mode="after")
    def _control_takes_as_many_steps(self) -> Self:
        if self.control and self.sampling.empty_classes == "released":
            raise ValueError(
                "sampling.empty_classes: released shortens the epochs of student and control by different amounts: "
                "write redistribute, or control: false"
            )
        return self


class AutoInferConfig(InferConfig):
    """Multi-scale inference (paper: {0.5, 1, 2} + flip)."""

    teacher: Annotated[Teacher | None, NotInKey] = setting(
        None,
        "who labels, also for calibrate and evaluate: checkpoint folder, onnx:FILE, hf:FOLDER,"
        " scores:FOLDER or a list of these; null = the workspace's teacher",
    )


class PseudoLabelConfig(Section):
    """From raw labels to training labels."""

    threshold: float | str = setting(
        "policy",
        "policy (what calibrate promises), teach (what a student gains from), a number on the code grid,"
        " or a policy file",
    )
    merge: MergeConfig = MergeConfig()
    min_component: Count = setting(0, "pixels; a smaller connected piece of a class gives no centroid to sample at")
    workers: Workers = setting(2, "processes")

    @property
    def given_policy(self) -> str | None:
        """The policy file that `threshold` names; None for a number and for a policy of `calibrate`."""
        return self.threshold if isinstance(self.threshold, str) and not self.is_measured else None

    @property
    def is_measured(self) -> bool:
        """Whether `threshold` names a policy that `calibrate` makes."""
        return self.threshold in MEASURED_POLICIES

    @field_validator("threshold")
    @classmethod
    def _is_known(cls, value: float | str) -> float | str:
        if isinstance(value, str):
            if value in MEASURED_POLICIES or value.endswith(".json"):
                return value
            raise ValueError('"policy", "teach", a number from 0 to 0.99999, or the path of a policy file (*.json)')
        if not 0.0 <= value < 1.0:
            raise ValueError('a number from 0 to 0.99999, "policy", "teach", or the path of a policy file (*.json)')
        below, above = ConfidenceCode().neighbours(value)
        if below != above:  # without this check pseudo-label refuses it, after hours of training
            near = " or ".join(edge for edge in (below, above) if edge is not None)
            raise ValueError(f"a number on the grid of the confidence code, such as its neighbours {near}")
        return value


class EvaluateConfig(Section):
    """Who is judged, on what, and when a student is good enough."""

    max_leaked: Share = setting(0.05, "share of judged images that may be in a model's lineage before the stage fails")
    max_gap: Count = setting(0, "frames; a judged image this close to a learned one in its sequence counts as learned")
    max_distance: int = setting(2, "bits of 64; perceptual hashes this close count as the same image", ge=0, le=16)
    settings: EvaluationSettings = setting(
        (
            EvaluationSetting(name="multi", scales=(0.5, 1.0, 2.0), flip=True),
            EvaluationSetting(name="single", scales=(1.0,), flip=False),
        ),
        "how each model is run; the first one is the main one",
    )
    details: bool = setting(True, "also boundary IoU, reliability and the weight of each scale per class")
    confidence: float = setting(0.95, "of the intervals", gt=0.5, lt=1.0)
    draws: int = setting(2000, "bootstrap draws of blocks", ge=200)
    seed: Count = setting(0, "of the bootstrap")
    runtime: RuntimeConfig = RuntimeConfig()
    gate: GateConfig = GateConfig()


class ReportConfig(Section):
    """The report page."""

    title: str = setting("Auto-labelling report", "of the page")
    pictures: Count = setting(6, "images shown with label, confidence and scale weights")


class _Params(Section):
    """A workspace's params.yaml: one section per stage (what each is about: `pipeline.workspace.table.TABLE`)."""

    profile: Profile = Field(description="which profile this file came from; `autolabel demo-data` and the tests ask")
    runtime: EngineConfig = setting(EngineConfig(), "who does the work; no result depends on it")
    data: DataConfig = Field(description="where the data lie, and who may use which image")
    prepare: PrepareConfig
    teacher_pretrain: PretrainConfig
    teacher_train: TeacherConfig
    calibrate: CalibrateConfig
    auto_infer: AutoInferConfig
    pseudo_label: PseudoLabelConfig
    student_train: StudentConfig
    evaluate: EvaluateConfig
    report: ReportConfig

    @model_validator(mode="after")
    def _thresholds_are_for_the_pixels_they_select(self) -> Self:
        labels = self.pseudo_label
        outside = self.calibrate.region == "outside_coarse" and not labels.merge.use_coarse
        if outside and labels.is_measured:
            raise ValueError(
                "calibrate.region is outside_coarse, but pseudo_label.merge.use_coarse is false: thresholds of the "
                "pixels that people left out would select from all pixels: write calibrate.region: all"
            )
        return self

    @model_validator(mode="after")
    def _somebody_labels(self) -> Self:
        """A chain without a teacher needs another network that labels, another start, and a control to compare with."""
        if not self.teacher_train.skip:
            return self
        for is_missing, wanted in (
            (self.auto_infer.teacher is None, "auto_infer.teacher: the network that labels"),
            (self.student_train.init == "teacher", "student_train.init: pretrained, or a checkpoint folder"),
            (not self.student_train.control, "student_train.control: true, with which the student is compared"),
        ):
            if is_missing:
                raise ValueError(f"teacher_train is skipped: write {wanted}")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a params.yaml; ConfigError with one line for the first mistake."""
        document = read_yaml(path)
        if not document.values:
            raise ConfigError(f"{path}: is empty", hint="`git checkout params.yaml` brings the committed one back")
        return cls.parse(document)

    @classmethod
    def of_profile(cls, name: str) -> Self:
        """Settings of a profile, as `autolabel init` writes them."""
        return cls.load(profile_file(name))

    @classmethod
    def parse(cls, document: Document) -> Self:
        """Settings in effect: a section's values override `train` and `runtime`, which override the code's defaults.

        Raises:
            ConfigError: the first mistake in one line.
        """
        values = _in_effect(document)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, replace(document, values=values), cls)) from None


def stages_of_chain(data: DataConfig) -> tuple[Stage, ...]:
    """The stages of a workspace: without any label map nothing can be learned or measured, and images are labelled."""
    return TABLE if data.target.has_labels else tuple(row for row in TABLE if row.name in ("prepare", "auto-infer"))


def _in_effect(document: Document) -> dict[str, Any]:
    """Values by section: `train` applies to the trainings, `runtime` to all; a section's values override both."""
    common = {name: document.values.get(name, {}) for name in ("train", "runtime")}
    for name, value in common.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"{document.where((name,))}: {name}: expected `key: value` lines, found {_shown(value)}")
    values = {row.section: {} for row in TABLE} | {k: v for k, v in document.values.items() if k != "train"}
    if values["teacher_train"] is None:
        values["teacher_train"] = {"skip": True}
    machine = {key: value for key, value in common["runtime"].items() if key not in EngineConfig.model_fields}
    if "runtime" in values:
        values["runtime"] = {key: value for key, value in common["runtime"].items() if key not in machine}
    for section, of_section in values.items():
        if section in RUNNING and isinstance(of_section, Mapping):
            trained = over({"runtime": machine}, common["train"] if section in TRAININGS else {})
            values[section] = over(trained, of_section)
    return values


def written_at(key: Key, lines: Mapping[Key, int]) -> Key:
    """The key of params.yaml that gives a setting its value: in the setting's section, or in `train` or `runtime`."""
    section, rest = key[:1], key[1:]
    places = [key]
    if section and section[0] in TRAININGS:
        places.append(("train", *rest))
    if section and section[0] in RUNNING and rest[:1] == ("runtime",):
        places.append(rest)
    return next((place for place in places if place in lines), key)


def _section_from(row: Stage) -> type[Section]:
    """Make the section class of a stage whose settings stand in its row of the table."""
    fields: dict[str, Any] = {
        name: (type(default), Field(default, description=text)) for name, (default, text) in row.settings.items()
    }
    return create_model(f"{row.section}_settings", __base__=Section, __doc__=row.description, **fields)


if TYPE_CHECKING:
    Params = _Params
else:
    Params = create_model(
        "Params",
        __base__=_Params,
        __doc__=_Params.__doc__,
        **{row.section: (_section_from(row), ...) for row in TABLE if row.section not in _Params.model_fields},
    )


def profile_file(name: str) -> Path:
    """Path of a profile's overlay."""
    return Path(__file__).with_name("profiles") / f"{name}.yaml"


def over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` overridden by `changes`, section by section; an empty mapping empties its section."""
    merged = dict(values)
    for name, value in changes.items():
        old = values.get(name)
        if value and isinstance(value, Mapping) and isinstance(old, Mapping):
            value = over(old, value)
        merged[name] = value
    return merged


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> str:
    """Describe the first mistake in one line: place, key, expected and found value, nearest valid key."""
    faults = error.errors(include_url=False)
    first = faults[0]
    if first["type"] == "missing":
        # A misspelt key is also reported as missing under its right name: the report of the unknown key says more.
        first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), first)
    where, owner = _resolve(model, first["loc"], document.values)
    key = written_at(where, document.lines)
    # pydantic reports a mistake in `train` once for each training, and one in a union once for each branch.
    places = [_resolve(model, fault["loc"], document.values)[0] for fault in faults]
    others = {written_at(other, document.lines) for other in places} - {key}
    more = f" (and {len(others)} more)" if others else ""
    place = f"{document.where(key)}: {dotted(key) or '(file)'}"
    of_union = [_expected(fault) for fault, other in zip(faults, places, strict=True) if other == where]
    message = " or ".join(dict.fromkeys((_expected(first), *of_union))).replace(" or expected ", " or ")
    named = re.match(r"[a-z_]+(\.[a-z_]+)+", message)
    if first["type"] == "extra_forbidden":
        names = sorted({*owner.model_fields, *_ONLY_WRITTEN.get(key[:-1], ())})
        message = "unknown key; " + did_you_mean(str(key[-1]), names, f"the keys here are: {', '.join(names)}")
    elif first["type"] == "missing":
        message = "a value is missing in the list" if isinstance(first["loc"][-1], int) else "missing"
    elif not key and named:  # a check over several sections names its key itself
        place = document.where(tuple(named[0].split(".")))
    elif first["type"].endswith("_type") and isinstance(first["input"], Mapping):
        message += ", found `key: value` lines"
    elif not isinstance(first["input"], Mapping | BaseModel) and ", found " not in message:
        text = _shown(first["input"])
        message += f", found {text if len(text) <= 60 else text[:57] + '...'}"
    return one_line(f"{place}: {message}{more}")


def _resolve(
    model: type[BaseModel], loc: tuple[int | str, ...], values: object
) -> tuple[tuple[int | str, ...], type[BaseModel]]:
    """Drop the parts of a location that name a branch of a union; find the section the key belongs to."""
    key: list[int | str] = []
    owner = model
    here: object = values
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(here, dict):
            if part not in here and not (last and (part in owner.model_fields)):
                continue
            section = _section_of(owner, str(part))
            here = here.get(part)
            key.append(part)
            if section is not None and not last:
                owner = section
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
            key.append(part)
    return tuple(key), owner


def _section_of(owner: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = owner.model_fields.get(name)
    return None if field is None else next(iter(_models_in(field.annotation)), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, Annotated):
        return [m for a in typing.get_args(annotation) for m in _models_in(a)]
    return []


def _shown(value: object) -> str:
    return "null" if value is None else repr(value)


def _expected(fault: Mapping[str, Any]) -> str:
    text = "expected `key: value` lines" if fault["type"] in ("model_type", "dict_type") else str(fault["msg"])
    for old, new in (
        ("Input should be a valid tuple", "expected a list"),
        ("Input should be a valid boolean", "expected true or false"),
        ("Input should be a valid ", "expected a "),
        ("Input should be ", "expected "),
        ("Value error, ", "expected " if fault["loc"] and fault["loc"][-1] == "threshold" else ""),
        ("String should match pattern", "expected text that matches"),
    ):
        text = text.replace(old, new)
    text = re.sub(r"^(?:Tuple|Value) should have (at \w+ \d+) items? after validation.*", r"expected \1 values", text)
    return text.replace("a integer", "an integer").replace(" 1 values", " 1 value")
