"""Typed settings of jobs: each field with unit and source; unknown keys and impossible values are refused.

The same models are the sections of a workspace's params.yaml (`pipeline.params`) and the body of the
job specs that `hmsa_core.job` reads. Defaults are the paper's recipe (Tao et al. 2020, section 4);
profiles override them.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from hmsa_core.io.errors import did_you_mean

__all__ = [
    "LARGEST_SCALE",
    "AugmentConfig",
    "InferConfig",
    "LossConfig",
    "ModelConfig",
    "OptimiserConfig",
    "PseudoConfig",
    "RuntimeConfig",
    "SamplingConfig",
    "Section",
    "TrainConfig",
]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
LARGEST_SCALE = 8.0
Size = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]


TRUNKS = (
    "hrnet_w18",
    "hrnet_w32",
    "hrnet_w48",
    "hrnet_w64",
    "hrnet_tiny",
    "hrnet_micro",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
)


def _known_trunk(name: str) -> str:
    """By name alone: settings are checked where torch is not imported."""
    if name not in TRUNKS and not re.fullmatch(r"hrnet_w[1-9]\d{0,2}", name):
        raise ValueError("unknown trunk, " + did_you_mean(name, TRUNKS, f"choose one of {', '.join(TRUNKS)}"))
    return name


def _different_with_one(scales: tuple[float, ...]) -> tuple[float, ...]:
    if 1.0 not in scales:
        raise ValueError("scales must contain 1.0")
    if len(set(scales)) != len(scales):
        raise ValueError("scales must be different")
    return scales


Scales = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=LARGEST_SCALE)], ...],
    Strict(False),
    Field(min_length=1),
    AfterValidator(_different_with_one),
]


class Section(BaseModel):
    """Base of all settings: immutable, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(Section):
    """The network (paper sections 3 and 4)."""

    kind: Literal["hierarchical", "explicit", "average", "max", "single"] = "hierarchical"
    trunk: Annotated[str, AfterValidator(_known_trunk)] = "hrnet_w48"
    head: Literal["paper", "released"] = "paper"
    ocr_mid: PositiveInt | None = None  # channels; None = the trunk's default (512 for published widths)
    ocr_key: PositiveInt | None = None  # channels; None = the trunk's default (256)
    attention_channels: PositiveInt | None = None  # channels; None = the trunk's default (256)
    dropout: Share = 0.05
    top_attention: Literal["skip", "released"] = "skip"
    low_scale: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5  # the second training scale
    # None = by kind, with low_scale. Absent from dumps while unset: keys of work older than this setting stay valid.
    train_scales: Annotated[Scales | None, Field(exclude_if=lambda scales: scales is None)] = None

    @model_validator(mode="after")
    def _scales_need_attention(self) -> ModelConfig:
        if self.train_scales is not None and self.kind not in ("hierarchical", "explicit"):
            raise ValueError(f"train_scales must not be set for kind {self.kind}, which is trained on 1x alone")
        if self.train_scales is not None and len(self.train_scales) < 2:
            raise ValueError("train_scales must be at least two: attention is learned between them (or kind: single)")
        return self


class AugmentConfig(Section):
    """Joint augmentation of image and label; ignored pixels stay ignored."""

    scale_min: Positive = 0.5
    scale_max: Positive = 2.0
    flip: Share = 0.5  # probability
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25  # strength of all four colour jitters
    blur: Share = 0.5  # probability of a Gaussian blur
    blur_sigma: Positive = 1.5  # pixels, upper end

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min must not exceed scale_max")
        return self


class LossConfig(Section):
    """Training loss (paper section 4; where the released code differs: docs/training.md)."""

    main: Literal["rmi", "cross_entropy", "bce"] = "rmi"
    rmi_ignore: Literal["released", "masked"] = "released"
    aux: Literal["cross_entropy", "released_bce", "released_rmi"] = "cross_entropy"
    aux_weight: Annotated[float, Field(ge=0.0)] = 0.4
    per_scale_weight: Annotated[float, Field(ge=0.0)] = 0.0  # released recipe: 0.05


class OptimiserConfig(Section):
    """SGD with polynomial decay (paper section 4)."""

    lr: Positive = 0.02  # for `lr_reference_batch` crops a step
    lr_reference_batch: PositiveInt = 32  # paper: 32 GPUs x batch 1
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"  # with global_batch / lr_reference_batch
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    poly_power: Positive = 2.0  # paper: 2.0 Cityscapes, 1.0 Mapillary
    poly_unit: Literal["step", "epoch"] = "epoch"  # released code changes the rate once an epoch
    warmup_steps: Count = 0  # linear from 0; the paper has none, small batches from scratch like some
    clip_norm: Annotated[float, Field(ge=0.0)] = 0.0  # gradient norm; 0 = off (paper)


class SamplingConfig(Section):
    """Class-uniform sampling (paper section 4, Zhu et al. 2019)."""

    class_uniform: Share = 0.5  # share of an epoch that picks a class first
    tile: PositiveInt = 1024  # pixels; grid in which class centroids are looked for
    max_repeats: PositiveInt = 4  # an image at most so often an epoch for one class
    min_pixels: Count = 0  # a class in a tile with fewer pixels gives no centroid
    empty_classes: Literal["redistribute", "released"] = "redistribute"


class PseudoConfig(Section):
    """The auto-labelled half of a student's epoch."""

    share: Share = 0.5  # paper: 50 % auto-labelled
    fine_only_epochs: Count = 0  # at the end
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25  # colour strength on auto-labelled crops
    mix: Literal["none", "cutmix", "classmix"] = "none"
    loss_weight: Annotated[float, Field(ge=0.0)] = 1.0


class RuntimeConfig(Section):
    """How a job uses the machine; none of it changes what is asked for, all of it goes into lineage."""

    ranks: PositiveInt = 1  # processes on this node: one a GPU, or CPU processes
    nodes: PositiveInt = 1
    threads: PositiveInt = 1  # torch threads per rank
    workers: Count = 0  # loader processes per rank
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    channels_last: bool = True
    compile: bool = False
    activation_checkpointing: bool = False

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
    crop: Size = (1024, 2048)  # height, width in pixels
    long_edge: PositiveInt | None = None  # resize before everything else (Mapillary: 2177)
    epochs: PositiveInt = 200
    epoch_samples: PositiveInt | None = None  # crops an epoch; None = number of fine images that learn
    global_batch: PositiveInt = 32  # crops a step over all ranks and accumulation
    batch_per_rank: PositiveInt = 1  # crops in one forward pass; the rest is gradient accumulation
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # 0 = off; the average is what is saved
    checkpoint_every: PositiveInt = 500  # steps
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    seed: Count = 0

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        per_pass = self.runtime.ranks * self.runtime.nodes * self.batch_per_rank
        if self.global_batch % per_pass:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of ranks x nodes x batch_per_rank = {per_pass}"
            )
        if self.pseudo.fine_only_epochs > self.epochs:
            raise ValueError("pseudo.fine_only_epochs must not exceed epochs")
        return self


class InferConfig(Section):
    """Multi-scale inference (paper: {0.5, 1, 2} + flip)."""

    scales: Scales = (0.5, 1.0, 2.0)
    flip: bool = True
    images_per_shard: PositiveInt = 256
    codec: Literal["png", "webp"] = "png"
    runtime: RuntimeConfig = RuntimeConfig()
