"""Job specs: what `python -m hmsa_core.job SPEC.json` is asked to do, checked before torch is loaded.

A spec holds paths and settings only. Paths may be absolute or relative to the working directory of the
job; images inside an index are relative to a named root (`roots`). Result files lie below `work`:

    train     work/model/                    checkpoint folder (model.safetensors, model.json, lineage.json)
    infer     work/store/                    raw label store
    evaluate  work/<setting name>.npz, work/summary.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, TypeAdapter, ValidationError

from hmsa_core.config import (
    SCALES,
    InferConfig,
    Names,
    Passes,
    PositiveInt,
    RuntimeConfig,
    Scales,
    Section,
    Teacher,
    TrainConfig,
)
from hmsa_core.io.atomic import write_json
from hmsa_core.io.engine import Kind
from hmsa_core.io.errors import ConfigError

FilePath = Annotated[Path, Strict(False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # becomes a file name


class Selection(Section):
    """Rows of an index; a filter that is null lets everything through."""

    index: FilePath
    roles: Names | None = None
    kinds: Names | None = None
    splits: Names | None = None
    names: Names | None = None

    def filters(self) -> dict[str, tuple[str, ...] | None]:
        """The filters as arguments of `Index.select`."""
        return self.model_dump(exclude={"index"})


class FineData(Section):
    """Images with fine labels, and where their class centroids are."""

    selection: Selection
    centroids: FilePath


class PseudoData(Section):
    """Auto-labelled images: a thresholded label store, its centroids, the index that knows the images.

    `root` is the folder of the images where it is not the spec's root of the index's name. Of a store of weight 2 an
    image is taken twice as often as of one of weight 1.
    """

    store: FilePath
    centroids: FilePath
    index: FilePath
    root: FilePath | None = None
    weight: float = Field(1.0, gt=0.0, allow_inf_nan=False)


class ValidationData(Section):
    """Images that the running model is scored on at ends of epochs (single scale, for the log alone)."""

    selection: Selection
    every_epochs: PositiveInt = 1


class _JobSpec(Section):
    """What all jobs have: a progress folder and the folders that images are relative to."""

    work: FilePath
    roots: dict[str, FilePath]
    lineage: dict[str, Any] = Field(default_factory=dict)  # recorded with the result as it is given

    def root(self, name: str) -> Path:
        """Folder of a named root; ConfigError where it is not given."""
        if name not in self.roots:
            there = ", ".join(self.roots) or "none"
            raise ConfigError(f"roots: the folder of root {name!r} is not given, only {there}")
        return self.roots[name]


class TrainSpec(_JobSpec):
    """One training run: pretraining, teacher, student or control.

    `init_from` is a checkpoint whose weights start the run (heads with another class count start anew).
    `teacher` made the pseudo labels, if `init_from` is not it: its images count as learned from. Nothing is chosen by
    `validation`: the last (or averaged) weights are the result.
    """

    job: Literal["train"] = "train"
    stage: str
    config: TrainConfig
    fine: FineData
    pseudo: Annotated[tuple[PseudoData, ...], Strict(False)] = ()
    init_from: FilePath | None = None
    teacher: Teacher | None = None
    validation: ValidationData | None = None
    tracking: FilePath | None = None  # folder of tensorboard/ and mlruns/ (runtime.tracking); None = `work`


class InferSpec(_JobSpec):
    """Label the selected images with a teacher into a raw label store.

    `classes` (a table's JSON) are what teachers of other tools are mapped to; None = the index's. `target` is the
    address of a store on an object store; "" = `work/store` is all. `engine` "ray": tasks of Ray label the shards,
    `runtime.ranks` at once, and this job is one process that hands them out.
    """

    job: Literal["infer"] = "infer"
    config: InferConfig = InferConfig()
    teacher: Teacher
    classes: dict[str, Any] | None = None
    selection: Selection
    target: str = ""
    engine: Kind = "local"


class EvaluationSetting(Section):
    """One way to run the model: scales, flip, and how the scales are fused ("model" = as it was trained)."""

    name: Name = Field(description="of the result files")
    scales: Scales = Field(SCALES, description="any list that contains 1.0")
    flip: bool = Field(True, description="average with the mirrored image")
    mode: Literal["model", "average", "max", "single"] = Field(
        "model", description="how the scales are fused: model (as it was trained), average, max or single"
    )
    long_edge: PositiveInt | None = Field(None, description="pixels; images are first brought to it (Mapillary: 2177)")
    score_at: Literal["original", "resized"] = Field(
        "original", description="resized: labels too, as the released code scores"
    )

    @property
    def passes(self) -> Passes:
        """How the network is run."""
        return Passes(self.scales, self.flip, self.mode)


def _of_different_names(settings: tuple[EvaluationSetting, ...]) -> tuple[EvaluationSetting, ...]:
    names = [setting.name for setting in settings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"expected settings of different names, found {twice[0]!r} more than once")
    return settings


EvaluationSettings = Annotated[
    tuple[EvaluationSetting, ...], Strict(False), Field(min_length=1), AfterValidator(_of_different_names)
]


class EvaluateSpec(_JobSpec):
    """Confusion counts of a checkpoint on the selected images, one result per setting."""

    job: Literal["evaluate"] = "evaluate"
    checkpoint: FilePath
    selection: Selection
    settings: EvaluationSettings
    runtime: RuntimeConfig = RuntimeConfig()
    details: bool = False  # also boundary IoU, boundary bands, reliability, weights of the scales


JobSpec = TrainSpec | InferSpec | EvaluateSpec
_ADAPTER: TypeAdapter[JobSpec] = TypeAdapter(Annotated[JobSpec, Field(discriminator="job")])


def load_spec(path: str | Path) -> JobSpec:
    """Read and check a spec file; ConfigError, one line: it is missing, or its first fault with its key."""
    try:
        return _ADAPTER.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the job spec ({error.strerror})") from error
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        first = faults[0]
        # The first part of the place is the tag of the union ("train"): it helps nobody.
        key = ".".join(str(part) for part in first["loc"][1:]) or "(whole file)"
        found = json.dumps(first["input"], default=str)[:80]
        given = "" if first["type"] == "missing" else f", found {found}"
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(f"{path}: {key}: {first['msg']}{given}{more}") from None


def save_spec(path: str | Path, spec: JobSpec) -> str:
    """Write a spec atomically as the JSON that `load_spec` reads; return the file's SHA-256."""
    return write_json(path, spec.model_dump(mode="json"))


def runtime_of(spec: JobSpec) -> RuntimeConfig:
    """How the job's own processes use the machine; where Ray labels, that is one, and `ranks` are Ray's."""
    runtime = spec.runtime if isinstance(spec, EvaluateSpec) else spec.config.runtime
    if isinstance(spec, InferSpec) and spec.engine == "ray":
        return runtime.model_copy(update={"threads": runtime.thread_count, "ranks": 1, "nodes": 1})
    return runtime
