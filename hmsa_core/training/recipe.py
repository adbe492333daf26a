"""What a run is made of: its model, optimiser, learning rate, running average and random numbers."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from hmsa_core.config import TrainConfig
from hmsa_core.io.errors import ConfigError
from hmsa_core.models import MultiScaleModel, build, initialise_from
from hmsa_core.models.heads import PixelHeads
from hmsa_core.models.options import ModelOptions
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import TrainSpec

_COARSEST = 32  # pixels a position of HRNet's coarsest grid stands for


def make_model(spec: TrainSpec, num_classes: int, ranks: Ranks) -> tuple[MultiScaleModel, list[str]]:
    """Build the model on the rank's device, start it from `init_from`; returns it and the parts left fresh."""
    config = spec.config
    seed_torch(config.seed, "init", "torch")
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


def learning_rate(config: TrainConfig, *, step: int, epoch: int, total_steps: int) -> float:
    """Rate in force during optimiser step `step` of epoch `epoch` (both 0-based): polynomial decay, warm-up.

    `lr` is meant for `lr_reference_batch` crops a step; other batches scale it (linear: Goyal et al. 2017, arXiv
    1706.02677; sqrt: Krizhevsky 2014, arXiv 1404.5997). With `poly_unit: epoch` the rate is constant within an epoch,
    as in the released code, and would reach 0 only after the last epoch.
    """
    chosen = config.optimiser
    done, total = (epoch, config.epochs) if chosen.poly_unit == "epoch" else (step, total_steps)
    factor = max(0.0, 1.0 - done / total) ** chosen.poly_power
    # The first step must move something, hence step + 1: warm-up ends at the full rate.
    warm = min(1.0, (step + 1) / chosen.warmup_steps) if chosen.warmup_steps else 1.0
    ratio = config.global_batch / chosen.lr_reference_batch
    scale = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[chosen.lr_scaling]
    return float(chosen.lr * scale * factor * warm)


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


def seed_torch(*place: int | str) -> None:
    """Seed torch as a pure function of a place, such as (seed, "pass", step, pass of the step).

    So nothing about random numbers has to be stored to resume exactly. A training run seeds before every forward
    pass. Which rank runs a pass does not enter: dropout is the same on any number of ranks.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in place)
    torch.manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1)
