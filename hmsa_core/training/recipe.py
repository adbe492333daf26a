"""What a run is made of: its model, optimiser, learning rate, running average and random numbers."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hmsa_core.config import OptimiserConfig, TrainConfig
from hmsa_core.io.errors import ConfigError
from hmsa_core.models import MultiScaleModel, build, initialise_from
from hmsa_core.models.ocr import PixelHeads
from hmsa_core.models.options import ModelOptions
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import TrainSpec

__all__ = [
    "LearningRate",
    "RunningAverage",
    "make_model",
    "make_optimiser",
    "poly",
    "refuse_small_crop",
    "scaled_lr",
    "seed_pass",
]

_COARSEST = 32  # pixels a position of HRNet's coarsest grid stands for


def make_model(spec: TrainSpec, num_classes: int, ranks: Ranks) -> tuple[MultiScaleModel, list[str]]:
    """Build the model on the rank's device, start it from `init_from`; returns it and the parts left fresh."""
    config = spec.config
    seed_everything(config.seed, "init")
    model = build(
        **config.model.model_dump(),
        num_classes=num_classes,
        activation_checkpointing=config.runtime.activation_checkpointing,
    )
    if not config.loss.aux_weight and isinstance(model.ocr, PixelHeads):
        # No loss reaches it: DDP would wait for its gradients, weight decay would shrink it. (OCR uses its own twice.)
        model.ocr.aux_head.requires_grad_(requires_grad=False)
    fresh = initialise_from(model, spec.init_from) if spec.init_from is not None else []
    if ranks.device.type == "cuda" and ranks.world > 1:
        # On CPUs torch has no synchronised batch norm: each rank normalises with its own crops.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    layout = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return model.to(ranks.device, memory_format=layout), fresh  # type: ignore[call-overload]  # torch's stub


def refuse_small_crop(config: TrainConfig) -> None:
    """Batch norm needs two values a channel, also on the coarsest grid of the smallest training scale."""
    runtime = config.runtime
    synchronised = runtime.ranks * runtime.nodes > 1 and runtime.device != "cpu" and torch.cuda.is_available()
    if not synchronised and config.model.trunk.startswith("deeplabv3") and config.batch_per_rank < 2:
        raise ConfigError(
            f"trunk {config.model.trunk} pools to one position: batch norm cannot train on batch_per_rank 1",
            hint="set batch_per_rank to at least 2, or train on several GPUs (synchronised batch norm)",
        )
    scale = min(ModelOptions(**config.model.model_dump(), num_classes=1).training_scales)
    rows, columns = (math.ceil(int(side * scale) / _COARSEST) for side in config.crop)
    if rows * columns * config.batch_per_rank < 2:
        raise ConfigError(
            f"crop {config.crop[0]}x{config.crop[1]} leaves one position on the coarsest grid at scale {scale:g}:"
            " batch norm cannot train on it",
            hint=f"make a side at least {math.ceil((_COARSEST + 1) / scale)} pixels, or batch_per_rank at least 2",
        )


def make_optimiser(config: TrainConfig, model: nn.Module) -> torch.optim.SGD:
    """SGD over all parameters that learn; ConfigError for nesterov without momentum."""
    chosen = config.optimiser
    if chosen.nesterov and not chosen.momentum:
        raise ConfigError("optimiser.nesterov needs optimiser.momentum above 0")
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Decay on all parameters, batch norm and biases included, as the released code does; fused: one kernel.
    optimiser = torch.optim.SGD(
        parameters,
        lr=chosen.lr,
        momentum=chosen.momentum,
        nesterov=chosen.nesterov,
        weight_decay=chosen.weight_decay,
        fused=True,
    )
    if chosen.momentum:
        # A zero buffer gives the same first step as none, and makes a resumed run the same code path.
        for p in parameters:
            optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimiser


def poly(done: float, total: float, power: float) -> float:
    """Factor (1 - done / total) ^ power of the base rate; 0 at the end and after it."""
    return float(max(0.0, 1.0 - done / total) ** power)


def scaled_lr(config: OptimiserConfig, global_batch: int) -> float:
    """Base rate for this batch: `lr` is meant for `lr_reference_batch` crops a step.

    linear: Goyal et al. 2017 (arXiv 1706.02677); sqrt: Krizhevsky 2014 (arXiv 1404.5997).
    """
    ratio = global_batch / config.lr_reference_batch
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.lr_scaling]
    return config.lr * factor


@dataclass(frozen=True)
class LearningRate:
    """The rate of every step of a run.

    Attributes:
        config: rate, power, unit ("epoch": constant within an epoch, as released; "step": every step), warm-up.
        global_batch: crops a step.
        total_steps, epochs: length of the run.
    """

    config: OptimiserConfig
    global_batch: int
    total_steps: int
    epochs: int

    def at(self, step: int, epoch: int) -> float:
        """Rate in force during optimiser step `step` of epoch `epoch` (both 0-based)."""
        done, total = (epoch, self.epochs) if self.config.poly_unit == "epoch" else (step, self.total_steps)
        factor = poly(done, total, self.config.poly_power)
        # The first step must move something, hence step + 1: warm-up ends at the full rate.
        warm = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return scaled_lr(self.config, self.global_batch) * factor * warm


class RunningAverage:
    """Exponential average of all floating point entries of a state dict, batch norm statistics included.

    The decay starts low, min(decay, (1 + t) / (10 + t)) after t updates, so that a short run does not
    carry its random start along (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._own = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.tensors: dict[str, Tensor] = {k: v.detach().clone() for k, v in self._own.items()}

    def update(self, updates: int) -> None:
        """Move towards the model; `updates` = number of updates before this one."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._own.values()), 1.0 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Put the average into a model of the same shape."""
        with torch.no_grad():
            state = model.state_dict()
            for name, tensor in self.tensors.items():
                state[name].copy_(tensor)


def derive_seed(*parts: int | str) -> int:
    """63-bit seed from any mix of numbers and words; a different place gives an unrelated seed."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int, what: str) -> None:
    """Seed Python, numpy and torch (all devices) for one purpose, e.g. "init"."""
    random.seed(derive_seed(seed, what, "python"))
    np.random.seed(derive_seed(seed, what, "numpy") % 2**32)  # noqa: NPY002 - libraries use the global one
    torch.manual_seed(derive_seed(seed, what, "torch"))


def seed_pass(seed: int, step: int, index: int) -> None:
    """Seed torch for forward pass `index` (0-based over all ranks) of optimiser step `step`."""
    torch.manual_seed(derive_seed(seed, "pass", step, index))
