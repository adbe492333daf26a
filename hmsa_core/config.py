"""Typed settings of jobs: each field says what it is, its unit and its source; impossible values are refused.

The same models are the sections of a workspace's params.yaml (`pipeline.workspace.params`) and the body of the
job specs that `hmsa_core.job` reads. Defaults are the paper's recipe (Tao et al. 2020, section 4);
profiles override them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from hmsa_core.io.errors import ConfigError, did_you_mean

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Allowance = Annotated[float, Field(gt=0.0, le=1.0)]  # 0 is excluded: no image can prove a loss of exactly 0
Names = Annotated[tuple[str, ...], Strict(False)]
Size = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
SCALES = (0.5, 1.0, 2.0)  # of inference (paper)
LARGEST_SCALE = 8.0
_NAMES = re.compile(r"^NAMES = [(\[](.*?)[)\]]", re.MULTILINE | re.DOTALL)  # in a trunk's file
_PATTERN = re.compile(r"""^PATTERN = r?(["'])(.*?)\1""", re.MULTILINE)


def _usable_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    """Check scales for settings, specs, options and `check_scales`; no other code checks scales again."""
    differ = len(set(scales)) == len(scales)
    if not differ or 1.0 not in scales or not all(0.0 < scale <= LARGEST_SCALE for scale in scales):
        raise ValueError(f"scales must be different numbers above 0 and up to {LARGEST_SCALE:g}, one of them 1")
    return scales


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Return a caller's scales in their order, as floats. ConfigError: unusable scales."""
    try:
        return _usable_scales(tuple(float(scale) for scale in scales))
    except ValueError as error:
        raise ConfigError(f"{error}, found {','.join(map(str, scales))}") from None


@dataclass(frozen=True)
class Passes:
    """How a network is run on an image: at which scales, with mirror images or not, and how the passes are fused.

    Scales are different numbers in any order; a network of this package needs 1.0 among them. Scores of mirror images
    are averaged with the others. Kind "model" = as the network was trained; "single" (scale 1.0 only), "average" and
    "max" fuse another way.
    """

    scales: tuple[float, ...]
    flip: bool
    kind: str = "model"

    @property
    def mirrors(self) -> tuple[bool, ...]:
        """Whether each run at a scale is of the mirror image."""
        return (False, True) if self.flip else (False,)


def trunk_fault(name: str) -> str:
    """Return why a trunk's name is unknown; empty for a known name. No trunk file is imported."""
    if trunk_family(name):
        return ""
    known = [*(name for names, _ in declared_trunks().values() for name in names), "timm:NAME"]
    return f"unknown trunk {name!r}: " + did_you_mean(name, known, f"choose one of {', '.join(known)}")


def trunk_family(name: str) -> str:
    """Return the file of `models/trunks` that builds a trunk; empty for an unknown name. Imports no trunk file."""
    for family, (names, pattern) in declared_trunks().items():
        if name in names or (pattern and re.fullmatch(pattern, name)):
            return family
    return ""


@cache
def declared_trunks() -> dict[str, tuple[tuple[str, ...], str]]:
    """NAMES and PATTERN of each trunk file, by the file's stem.

    The text is searched, not parsed: Python 3.11 fails at times when two threads parse, and Prefect parses in one.
    """
    found = {}
    for path in sorted((Path(__file__).parent / "models" / "trunks").glob("[a-z]*.py")):
        text = path.read_text("utf-8")
        names, pattern = _NAMES.search(text), _PATTERN.search(text)
        if names is None:
            raise ConfigError(f"{path}: no NAMES", hint='write NAMES = ("a_name", ...) at the start of a line')
        found[path.stem] = (tuple(re.findall("""["'](.*?)["']""", names[1])), pattern[2] if pattern else "")
    return found


def _known_trunk(name: str) -> str:
    """Check a trunk by name alone: settings are checked where torch is not imported."""
    if fault := trunk_fault(name):
        raise ValueError(fault)
    return name


def _as_list(teacher: Any) -> Any:
    return (str(teacher),) if isinstance(teacher, str | Path) else teacher


# Source of labels: checkpoint folder, onnx:FILE, hf:FOLDER, scores:FOLDER, or several (`inference.teachers.sources`).
Teacher = Annotated[tuple[str, ...], Strict(False), BeforeValidator(_as_list), Field(min_length=1)]
Scales = Annotated[tuple[float, ...], Strict(False), AfterValidator(_usable_scales)]


class Section(BaseModel):
    """Base of all settings: immutable, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: object) -> Self:
        """Build the section from values; a ConfigError names `where`, the first wrong key, and the expected value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"] if part not in ("int", "str"))  # not branches of a union
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = f"known: {', '.join(cls.model_fields)}"
            key, text = f"unknown key {key!r}", did_you_mean(key, cls.model_fields, known)
        elif fault["type"] != "value_error":
            text += f", found {fault['input']!r}"
        raise ConfigError(f"{where}: {key}: {text}" if key else f"{where}: {text}")


def setting(default: Any, description: str, **limits: Any) -> Any:
    """Define a setting by its default and its description (meaning, unit, source); `limits` go to pydantic's Field."""
    return Field(default, description=description, **limits)


class NotInKey:
    """Mark of a field that changes no result, `Annotated[int, NotInKey]`: keys of finished work leave it out."""


def key_material(section: Section) -> dict[str, Any]:
    """Return the settings of a section that determine a result, as JSON values; all keys of finished work use these.

    Fields marked `NotInKey` are left out at any depth: speed of a job, interval of saving, and files that a key holds
    by content (start weights). So an interrupted training can continue with another number of GPUs.
    """
    values = section.model_dump(mode="json")
    material: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if NotInKey not in field.metadata:
            value = getattr(section, name)
            material[name] = key_material(value) if isinstance(value, Section) else values[name]
    return material


Kind = Literal["hierarchical", "explicit", "average", "max", "single"]


class ModelConfig(Section):
    """The network (paper sections 3 and 4): of `build`, of a training, and of a checkpoint's JSON.

    The number of classes is the data's. A JSON lists all fields; one that it lacks came later and has its default.
    """

    kind: Kind = setting("hierarchical", "hierarchical (paper), explicit, average, max or single")
    trunk: Annotated[str, AfterValidator(_known_trunk)] = setting(
        "hrnet_w48", "hrnet_w48 (paper), any hrnet_w<N>, hrnet_tiny, hrnet_micro, deeplabv3_resnet50, timm:NAME"
    )
    trunk_weights: str = setting(
        "none",
        "none, package:efficientnet-lite0 (1, 2), a .safetensors or .pth file, or hub:COMMIT; not used"
        " where training starts from a checkpoint",
    )
    context: Literal["ocr", "aspp", "psp", "none"] | None = setting(
        None, "ocr (paper), aspp (DeepLab), psp (PSPNet) or none; null = the trunk's"
    )
    head: Literal["paper", "released"] = setting(
        "paper", "paper (three layers, Fig. 3) or released (one 1x1 convolution)"
    )
    ocr_mid: PositiveInt | None = setting(
        None, "channels of OCR; null = the trunk's (published widths: 512, Yuan et al. 2020)"
    )
    ocr_key: PositiveInt | None = setting(None, "channels of OCR's keys; null = the trunk's (published widths: 256)")
    attention_channels: PositiveInt | None = setting(
        None, "channels of the attention head; null = the trunk's (published widths: 256)"
    )
    dropout: Probability = setting(0.05, "probability behind the context block (Yuan et al. 2020: 0.05)")
    drop_path: Probability = setting(0.0, "stochastic depth, trunks of timm only (Huang et al. 2016)")
    top_attention: Literal["skip", "released"] = setting(
        "skip", "skip (never used, not computed) or released (computed, for its batch-norm statistics)"
    )
    low_scale: float = setting(0.5, "second training scale (paper: 0.5)", gt=0.0, lt=1.0)
    train_scales: Scales | None = setting(
        None, "all training scales, of teacher and student alike; null = low_scale and 1 (paper), and 2 if explicit"
    )

    @model_validator(mode="after")
    def _scales_need_attention(self) -> ModelConfig:
        if self.train_scales is not None and not self.has_attention:
            raise ValueError(f"train_scales must not be set for kind {self.kind}, which is trained on 1x alone")
        if self.train_scales is not None and len(self.train_scales) < 2:
            raise ValueError("train_scales must be at least two: attention is learned between them (or kind: single)")
        return self

    @property
    def has_attention(self) -> bool:
        """Whether the network has an attention head."""
        return self.kind in ("hierarchical", "explicit")

    @property
    def training_scales(self) -> tuple[float, ...]:
        """Scales of the training pass, ascending. Kinds average and max train on scale 1.0 alone, like single."""
        if not self.has_attention:
            return (1.0,)
        if self.train_scales is not None:
            return tuple(sorted(self.train_scales))
        return (self.low_scale, 1.0) if self.kind == "hierarchical" else (self.low_scale, 1.0, 2.0)

    def as_kind(self, kind: str) -> ModelConfig:
        """The same network under another fusion. ConfigError: there is no such kind."""
        other = ModelConfig.checked({"kind": kind}, "model")
        scales = self.train_scales if other.has_attention else None
        return self.model_copy(update={"kind": kind, "train_scales": scales})

    def record(self) -> dict[str, Any]:
        """Return the options for a checkpoint's JSON: all fields but kind, trunk and the source of trunk weights."""
        return self.model_dump(mode="json", exclude={"kind", "trunk", "trunk_weights"})

    @property
    def trunk_file(self) -> str | None:
        """Path that `trunk_weights` names, as the user wrote it; None for fresh weights, a package or the hub."""
        return None if self.trunk_weights.partition(":")[0] in ("none", "package", "hub") else self.trunk_weights


class AugmentConfig(Section):
    """Joint augmentation of image and label; ignored pixels stay ignored."""

    scale_min: Positive = setting(0.5, "random scale, lower end (paper: 0.5)")
    scale_max: Positive = setting(2.0, "random scale, upper end (paper: 2.0)")
    flip: Share = setting(0.5, "probability of a horizontal flip")
    colour: float = setting(
        0.25,
        "strength of brightness, contrast, saturation and hue jitter (released: 0.25, hue twice as far)",
        ge=0.0,
        le=1.0,
    )
    blur: Share = setting(0.5, "probability of a Gaussian blur")
    blur_sigma: Positive = setting(1.5, "pixels, upper end")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min must not exceed scale_max")
        return self


def _known_loss(name: str) -> str:
    """A loss is a file of `hmsa_core/losses`; its name is checked where torch is not imported."""
    known = sorted(m.name for m in iter_modules([str(Path(__file__).with_name("losses"))]) if m.name[0] != "_")
    if name not in known:
        raise ValueError("unknown loss, " + did_you_mean(name, known, f"choose one of {', '.join(known)}"))
    return name


LossName = Annotated[str, AfterValidator(_known_loss)]


class LossConfig(Section):
    """Training loss (paper section 4; where the released code differs: docs/training.md)."""

    main: LossName = setting("rmi", "rmi (paper; Zhao et al. 2019), cross_entropy, jaccard or released_bce")
    rmi_ignore: Literal["released", "masked"] = setting(
        "released", "released (ignored pixels count as zeros) or masked (only fully valid regions)"
    )
    aux: LossName = setting("cross_entropy", "loss of the auxiliary head: cross_entropy (paper), or another one")
    aux_weight: float = setting(0.4, "paper: 0.4", ge=0.0)
    per_scale_weight: float = setting(0.0, "loss on each single scale's output; released recipe 0.05, paper 0", ge=0.0)


class OptimiserConfig(Section):
    """SGD (paper section 4) or AdamW with polynomial decay; what a pretrained trunk learns."""

    algorithm: Literal["sgd", "adamw"] = setting("sgd", "sgd (paper) or adamw (Loshchilov and Hutter 2019)")
    lr: Positive = setting(0.02, "learning rate for lr_reference_batch crops a step")
    lr_reference_batch: PositiveInt = setting(32, "crops a step that lr is meant for (paper: 32 GPUs x 1)")
    lr_scaling: Literal["linear", "sqrt", "none"] = setting(
        "linear", "linear, sqrt or none: with global_batch / lr_reference_batch"
    )
    momentum: Share = setting(0.9, "SGD's (paper: 0.9); AdamW's first beta, its second is 0.999")
    nesterov: bool = setting(False, "paper: no")
    weight_decay: float = setting(
        5e-4, "paper: 5e-4 (the released code: 1e-4); AdamW leaves out biases and norms", ge=0.0
    )
    poly_power: Positive = setting(2.0, "exponent of the decay (paper: 2.0 Cityscapes, 1.0 Mapillary)")
    poly_unit: Literal["step", "epoch"] = setting("epoch", "step or epoch (released: the rate changes once an epoch)")
    warmup_steps: Count = setting(0, "steps of linear warm-up from 0 (paper: none)")
    clip_norm: float = setting(0.0, "gradient norm; 0 = off (paper)", ge=0.0)
    trunk_factor: Share = setting(1.0, "the trunk's rate over the rate of the rest (paper: 1)")
    layer_decay: float = setting(
        1.0, "factor from each layer of the trunk to the one before it; 1 = off", gt=0.0, le=1.0
    )
    frozen_layers: Count = setting(
        0, "first layers of the trunk that do not learn; more than there are = the whole trunk"
    )
    frozen_norms: bool = setting(False, "batch norms of the trunk keep their statistics")


class SamplingConfig(Section):
    """Class-uniform sampling (paper section 4, Zhu et al. 2019)."""

    class_uniform: Share = setting(0.5, "share of an epoch that picks a class first (paper: 0.5)")
    tile: PositiveInt = setting(1024, "pixels; grid in which a class's centroids are looked for (paper: 1024)")
    max_repeats: PositiveInt = setting(4, "an image at most so often an epoch for one class")
    min_pixels: Count = setting(0, "pixels; a class with fewer in a tile gives no centroid there")
    empty_classes: Literal["redistribute", "released"] = setting(
        "redistribute", "redistribute their share, or released: a shorter epoch"
    )


class PseudoConfig(Section):
    """The auto-labelled half of a student's epoch."""

    share: Share = setting(0.5, "share of auto-labelled crops in an epoch (paper: 0.5); used by student_train only")
    fine_only_epochs: Count = setting(0, "epochs at the end with fine crops only")
    colour: float = setting(
        0.25,
        "colour jitter on auto-labelled crops; those with more human pixels than pixels of the teacher have"
        " that of fine ones",
        ge=0.0,
        le=1.0,
    )
    mix: Literal["none", "cutmix", "classmix"] = setting(
        "none",
        "what of fine crops is pasted into auto-labelled ones, never over human pixels: none, cutmix,"
        " or classmix (Olsson et al. 2021)",
    )
    human_weight: float = setting(
        1.0,
        "weight of human pixels on auto-labelled crops in the loss, at most that at which all of a label store's human"
        " pixels weigh as much as its others; where answers label few: 20 to 100",
        ge=0.0,
    )

    def acts_by_source(self, colour: float) -> bool:
        """Whether crops depend on who labelled each pixel; `colour` is the colour jitter of fine crops."""
        return self.mix != "none" or self.human_weight != 1.0 or self.colour != colour


Trackers = Annotated[tuple[Literal["tensorboard", "mlflow"], ...], Strict(False)]


class RuntimeConfig(Section):
    """How a job uses the machine; none of it changes what is asked for, all of it goes into lineage."""

    ranks: Annotated[PositiveInt, NotInKey] = setting(1, "processes on this node: one a GPU, or CPU processes")
    nodes: Annotated[PositiveInt, NotInKey] = setting(1, "machines (docs/scaling.md: several nodes)")
    launcher: Annotated[str, NotInKey] = setting(
        "local",
        "what starts the other machines: local (they run `autolabel join`), srun, or a command that starts"
        " what follows it once on each, such as mpirun --map-by ppr:1:node",
    )
    threads: PositiveInt | Literal["auto"] = setting(
        1, "torch threads a rank, auto = all cores; changes the last bits, so it is part of the key"
    )
    workers: Annotated[Count, NotInKey] = setting(0, "loader processes a rank")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto, cpu or cuda")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "bf16", "fp32, bf16, fp16, or auto: what is fastest here, measured before a training"
    )
    channels_last: bool | Literal["auto"] = setting(
        True, "memory format of the convolutions; auto: what is fastest here, measured before a training"
    )
    sync_norm: Annotated[Literal["world", "node", "off"], NotInKey] = setting(
        "world",
        "ranks whose crops batch norm sees together, on GPUs: world (all, as released), node, or off;"
        " their number is part of the key",
    )
    lost_minutes: Annotated[Positive, NotInKey] = setting(
        15.0,
        "a training without progress for so long has lost a rank or a GPU, and is started again; machines"
        " wait so long for each other at the start, and at most a minute for one that falls silent",
    )
    compile: bool = setting(False, "torch.compile")
    activation_checkpointing: bool = setting(False, "less memory, a third more time")
    tracking: Annotated[Literal["none", "tensorboard", "mlflow"] | Trackers, NotInKey] = setting(
        "none", "where a training's figures go besides its log: none, tensorboard, mlflow, or a list"
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers by name."""
        if isinstance(self.tracking, tuple):
            return self.tracking
        return () if self.tracking == "none" else (self.tracking,)

    @property
    def thread_count(self) -> int:
        """Torch threads a rank on this machine."""
        if self.threads == "auto":
            return max(1, len(os.sched_getaffinity(0)) // self.ranks)
        return self.threads

    @model_validator(mode="after")
    def _one_of_both(self) -> RuntimeConfig:
        if self.compile and self.activation_checkpointing:
            raise ValueError("expected compile or activation_checkpointing, found both: torch cannot trace the latter")
        return self


class TrainConfig(Section):
    """One training run: pretraining, teacher, student and control differ only in these values."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    augment: AugmentConfig = AugmentConfig()
    sampling: SamplingConfig = SamplingConfig()
    pseudo: PseudoConfig = PseudoConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    crop: Size = setting((1024, 2048), "pixels, height x width (paper: 1024x2048 Cityscapes, 1024x1856 Mapillary)")
    long_edge: PositiveInt | None = setting(
        None, "pixels; resize the long edge to this first (paper, Mapillary: 2177); null = as stored"
    )
    epochs: PositiveInt = setting(
        200, "fixed length; the last (or averaged) weights are taken, nothing is selected (paper: 200)"
    )
    epoch_samples: PositiveInt | None = setting(None, "crops an epoch; null = number of learning images")
    global_batch: PositiveInt = setting(32, "crops a step over all ranks and accumulation (paper: 32)")
    batch_per_rank: PositiveInt = setting(1, "crops in one forward pass of a rank (paper: 1); the rest is accumulation")
    ema_decay: float = setting(
        0.0, "moving average of the weights, saved instead of them; 0 = off (paper)", ge=0.0, lt=1.0
    )
    checkpoint_every: Annotated[PositiveInt, NotInKey] = setting(
        500, "steps between saved states (work/, never published)"
    )
    keep_checkpoints: Annotated[int, NotInKey] = setting(2, "saved states that are kept, at least 2", ge=2)
    seed: Count = setting(0, "of weights, sample order and augmentation")

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        per_pass = self.runtime.ranks * self.runtime.nodes * self.batch_per_rank
        if self.global_batch % per_pass:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of ranks x nodes x batch_per_rank = {per_pass}"
            )
        if self.pseudo.fine_only_epochs >= self.epochs:
            raise ValueError("pseudo.fine_only_epochs must be fewer than epochs: else no auto-label teaches")
        return self


class InferConfig(Section):
    """Multi-scale inference (paper: {0.5, 1, 2} + flip)."""

    scales: Scales = setting(SCALES, "any list that contains 1.0 (paper: 0.5, 1, 2)")
    flip: bool = setting(True, "average with the mirrored image (paper: yes)")
    images_per_shard: PositiveInt = setting(256, "images in a Parquet shard")
    codec: Literal["png", "webp"] = setting("png", "png or webp (smaller, slower)")
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def passes(self) -> Passes:
        """How the network is run."""
        return Passes(self.scales, self.flip)


class GateConfig(Section):
    """When a student is promoted. IoU and recall are shares (0.01 = one point)."""

    enabled: bool = setting(True, "false = report only, never promote")
    alpha: float = setting(
        0.05, "one-sided error probability: of the gain over all looks, of each guard for a candidate", gt=0.0, lt=0.5
    )
    min_gain: float = setting(0.0, "mean IoU; the gain's lower bound must exceed it", ge=-1.0, le=1.0)
    seed_sd: Annotated[float, Field(ge=0.0)] | None = setting(
        None, "mean IoU; spread between trainings of one recipe; null = from A/A trainings"
    )
    min_aa_runs: int = setting(3, "A/A trainings before that spread counts as known", ge=2)
    class_allowance: Allowance = setting(0.02, "IoU that a class may lose")
    class_allowances: dict[str, Allowance] = Field(
        default_factory=dict, description="the same for single classes, by name"
    )
    min_blocks: int = setting(10, "blocks of the report set; and blocks that show a class, or it is not judged", ge=2)
    veto_recall: Names = setting(("person", "rider", "pedestrian", "bicyclist"), "classes whose recall may not fall")
    recall_allowance: Share = setting(0.01, "recall that such a class may lose")
    draws: int = setting(2000, "bootstrap draws of blocks", ge=200)
    power: float = setting(0.8, "for the smallest gain that could have been seen", gt=0.5, lt=1.0)

    @property
    def named_veto(self) -> tuple[str, ...]:
        """Classes of `veto_recall` that must exist; the default list names classes of several data sets."""
        return () if self.veto_recall == type(self).model_fields["veto_recall"].default else self.veto_recall
