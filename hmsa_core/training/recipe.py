"""Parts of a run: model, optimiser, learning rate, running average, random numbers, resolution of `auto` settings."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hmsa_core.config import OptimiserConfig, TrainConfig
from hmsa_core.inference.network.optimised import cpu_has_bf16, fast_precision
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import ConfigError
from hmsa_core.losses import is_softmax, training_loss
from hmsa_core.models import MultiScaleModel, initialise_from
from hmsa_core.models.heads import PixelHeads
from hmsa_core.models.layers.batch_norm import synchronise
from hmsa_core.models.model import build_fresh, start_for_softmax
from hmsa_core.models.pretrained import load_trunk_weights
from hmsa_core.runtime.ranks import DTYPES, JobContext, Ranks
from hmsa_core.spec import TrainSpec

CHOICE = "runtime.json"
_CROP = (128, 192)  # pixels; larger crops are timed at this size
_BATCH = 2
_SECONDS = 2.0  # seconds of timing, for all ways together
_MARGIN = 0.95  # of the default choice's time: another choice must be clearly faster
_COARSEST = 32  # pixels a side for each position of HRNet's coarsest grid


def make_model(spec: TrainSpec, num_classes: int, ranks: Ranks) -> tuple[MultiScaleModel, list[str]]:
    """Build the model on the rank's device, start it from `init_from`; return it and the parts left fresh."""
    config = spec.config
    seed_torch(config.seed, "init", "torch")
    checkpointing = config.runtime.activation_checkpointing
    model = build_fresh(config.model, num_classes, activation_checkpointing=checkpointing)
    if not config.loss.aux_weight and isinstance(model.ocr, PixelHeads):
        # No loss reaches it: DDP would wait for its gradients, weight decay would shrink it. (OCR needs its head.)
        model.ocr.aux_head.requires_grad_(requires_grad=False)
    if is_softmax(config.loss.main):
        start_for_softmax(model)
    fresh: list[str] = []
    if spec.init_from is not None:
        fresh = initialise_from(model, spec.init_from)
    elif config.model.trunk_weights != "none":
        load_trunk_weights(model, config.model.trunk_weights)
    for parameter in _frozen(model, config.optimiser.frozen_layers):
        parameter.requires_grad_(False)
    if ranks.norm_ranks > 1:
        synchronise(model, ranks.norm_group)
    layout = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return model.to(ranks.device, memory_format=layout), fresh  # type: ignore[call-overload]  # torch's stub


def refuse_small_crop(config: TrainConfig, norm_ranks: int = 1) -> None:
    """Check that batch norm has two values a channel, also on the coarsest grid of the smallest training scale."""
    pools = config.model.context in ("aspp", "psp") or config.model.trunk.startswith("deeplabv3")
    if norm_ranks == 1 and pools and config.batch_per_rank < 2:
        what = f"context {config.model.context}" if config.model.context else f"trunk {config.model.trunk}"
        raise ConfigError(
            f"{what} pools to one position: batch norm cannot train on batch_per_rank 1",
            hint="set batch_per_rank to at least 2, or train on several GPUs (synchronised batch norm)",
        )
    scale = min(config.model.training_scales)
    rows, columns = (math.ceil(int(side * scale) / _COARSEST) for side in config.crop)
    if rows * columns * config.batch_per_rank < 2:
        raise ConfigError(
            f"crop {config.crop[0]}x{config.crop[1]} leaves one position on the coarsest grid at scale {scale:g}:"
            " batch norm cannot train on it",
            hint=f"make a side at least {math.ceil((_COARSEST + 1) / scale)} pixels, or batch_per_rank at least 2",
        )


def set_training(model: MultiScaleModel, config: TrainConfig) -> None:
    """Put the model into training mode, except norms of the trunk that keep their statistics."""
    model.train()
    chosen, frozen = config.optimiser, set(_frozen(model, config.optimiser.frozen_layers))
    for module in published_part(model).modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and (chosen.frozen_norms or module.weight in frozen):
            module.eval()


def make_optimiser(config: TrainConfig, model: MultiScaleModel) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters that learn; `factor` of each group multiplies the rate.

    The optimiser's state is made at once, so that a resumed run takes the same code path.

    Raises:
        ConfigError: nesterov without momentum.
    """
    chosen = config.optimiser
    if chosen.nesterov and not chosen.momentum:
        raise ConfigError("optimiser.nesterov needs optimiser.momentum above 0")
    groups = _parameter_groups(model, chosen)
    options: dict[str, Any] = {"lr": chosen.lr, "fused": True}  # fused: one kernel
    if chosen.algorithm == "adamw":
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(groups, betas=(chosen.momentum, 0.999), **options)
        fresh: dict[str, Callable[[Tensor], Tensor]] = dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros_like)
        fresh["step"] = lambda parameter: torch.zeros((), dtype=torch.float32, device=parameter.device)
    else:
        optimiser = torch.optim.SGD(groups, momentum=chosen.momentum, nesterov=chosen.nesterov, **options)
        # A zero buffer gives the same first step as no buffer.
        fresh = {"momentum_buffer": torch.zeros_like} if chosen.momentum else {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter].update({name: make(parameter) for name, make in fresh.items()})
    return optimiser


def _parameter_groups(model: MultiScaleModel, chosen: OptimiserConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by rate and weight decay.

    SGD decays all parameters, batch norms and biases included, as the released code does; AdamW decays weights alone.
    """
    rates = {}
    layers = trunk_layers(model)
    for depth, layer in enumerate(layers):
        rate = chosen.trunk_factor * chosen.layer_decay ** (len(layers) - 1 - depth)
        rates.update(dict.fromkeys(layer, rate))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_plain = chosen.algorithm == "adamw" and parameter.ndim < 2
            place = rates.get(parameter, 1.0), 0.0 if is_plain else chosen.weight_decay
            groups.setdefault(place, []).append(parameter)
    return [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]


def published_part(model: MultiScaleModel) -> nn.Module:
    """Return the part of the trunk that published weights fill: `body`, or the whole trunk."""
    return cast("nn.Module", getattr(model.backbone, "body", model.backbone))


def trunk_layers(model: MultiScaleModel) -> list[list[nn.Parameter]]:
    """Return the trunk's parameters by layer, from the image on.

    A layer is a name up to its first number: `blocks.2`, `stage3.1`; names without a number form the first layer.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in published_part(model).named_parameters():
        numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name)
        layers.setdefault(numbered[0] if numbered else "", []).append(parameter)
    return [layers.pop("", []), *layers.values()]


def _frozen(model: MultiScaleModel, count: int) -> list[nn.Parameter]:
    return [parameter for layer in trunk_layers(model)[:count] for parameter in layer]


def learning_rate(config: TrainConfig, *, step: int, epoch: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` in epoch `epoch` (both 0-based): polynomial decay, warm-up.

    `lr` is meant for `lr_reference_batch` crops a step; other batches scale it (linear: Goyal et al. 2017, arXiv
    1706.02677; sqrt: Krizhevsky 2014, arXiv 1404.5997). With `poly_unit: epoch` the rate is constant within an epoch,
    as in the released code, and would reach 0 only after the last epoch.
    """
    chosen = config.optimiser
    done, total = (epoch, config.epochs) if chosen.poly_unit == "epoch" else (step, total_steps)
    factor = max(0.0, 1.0 - done / total) ** chosen.poly_power
    # Step + 1, so that the first step changes the weights; warm-up ends at the full rate.
    warm = min(1.0, (step + 1) / chosen.warmup_steps) if chosen.warmup_steps else 1.0
    ratio = config.global_batch / chosen.lr_reference_batch
    scale = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[chosen.lr_scaling]
    return float(chosen.lr * scale * factor * warm)


class RunningAverage:
    """Exponential average of all floating point entries of a state dict, batch norm statistics included.

    The decay after t updates is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage. So the
    average of a short run does not keep its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._followed = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.tensors: dict[str, Tensor] = {k: v.detach().clone() for k, v in self._followed.items()}

    def update(self, updates: int) -> None:
        """Move towards the model; `updates` = number of updates before this one."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._followed.values()), 1.0 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Put the average into a model of the same shape."""
        with torch.no_grad():
            state = model.state_dict()
            for name, tensor in self.tensors.items():
                state[name].copy_(tensor)


def seed_torch(*place: int | str) -> None:
    """Seed torch as a pure function of a place, such as (seed, "pass", step, pass of the step).

    So an exact resume needs no stored random state. A training run seeds before every forward
    pass. The rank is not part of the seed: dropout is the same on any number of ranks.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in place)
    torch.manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1)


def settle_runtime(spec: TrainSpec, context: JobContext) -> TrainSpec:
    """Replace `auto` in the settings of the runtime; all ranks call it. GPUs take bf16 and channels_last.

    CPUs take the fastest settings in a few timed passes of the model. The choice is part of the training's key and of
    its lineage. The work folder stores the choice, so that an interrupted training continues with it.
    """
    runtime = spec.config.runtime
    requested = {"threads": runtime.threads, "precision": runtime.precision, "channels_last": runtime.channels_last}
    if "auto" not in requested.values():
        return spec
    chosen = context.ranks.broadcast(_choice(spec, context, requested) if context.ranks.is_main else {})
    torch.set_num_threads(chosen["threads"])
    settled = runtime.model_copy(update=chosen)
    return spec.model_copy(update={"config": spec.config.model_copy(update={"runtime": settled})})


def _choice(spec: TrainSpec, context: JobContext, requested: dict[str, Any]) -> dict[str, Any]:
    path = spec.work / CHOICE
    known = read_json(path) if path.exists() else {}
    if known.get("asked") != requested:
        known = {"asked": requested} | _measure(spec, context, requested)
        write_json(path, known)
        context.log.write("runtime", **known)
    return dict(known["chosen"])


def _measure(spec: TrainSpec, context: JobContext, requested: dict[str, Any]) -> dict[str, Any]:
    threads = {"threads": spec.config.runtime.thread_count}
    ways = ways_to_compute(context.ranks.device.type, requested["precision"], requested["channels_last"])
    if len(ways) == 1:
        return {"chosen": ways[0] | threads, "timed": []}
    height, width = (min(side, most) for side, most in zip(spec.config.crop, _CROP, strict=True))
    budget = _SECONDS / len(ways)
    seconds = [seconds_a_pass(spec.config, way, (_BATCH, height, width), budget=budget) for way in ways]
    fastest = min(range(len(ways)), key=seconds.__getitem__)
    best = fastest if seconds[fastest] < _MARGIN * seconds[0] else 0
    timed = [way | {"seconds": round(s, 4)} for way, s in zip(ways, seconds, strict=True)]
    processor = {"processor": torch.backends.cpu.get_cpu_capability(), "bf16": cpu_has_bf16()}
    return {"chosen": ways[best] | threads, "timed": timed, **processor}


def ways_to_compute(device: str, precision: str = "auto", channels_last: bool | str = "auto") -> list[dict[str, Any]]:
    """Precisions and memory formats that `auto` may stand for on a device "cpu" or "cuda", plain ones first."""
    precisions, formats = [precision], [channels_last]
    if precision == "auto":
        precisions = [fast_precision()] if device == "cuda" else ["fp32", *["bf16"] * cpu_has_bf16()]
    if channels_last == "auto":
        formats = [True] if device == "cuda" else [True, False]
    return [{"precision": one, "channels_last": last} for one, last in itertools.product(precisions, formats)]


def seconds_a_pass(
    config: TrainConfig,
    way: dict[str, Any],
    shape: tuple[int, int, int],
    *,
    budget: float,
    device: torch.device | str = "cpu",
) -> float:
    """Seconds of the fastest of a few forward and backward passes on noise.

    Args:
        config: the network and its loss.
        way: the precision, and whether tensors are channels_last.
        shape: crops in the pass, height and width in pixels.
        budget: seconds to spend; two passes at the least.
        device: where it computes.
    """
    count, height, width = shape
    layout = torch.channels_last if way["channels_last"] else torch.contiguous_format
    dtype, kind = DTYPES[way["precision"]], torch.device(device).type
    with torch.random.fork_rng():
        model = build_fresh(config.model, num_classes=19).train().to(device)
        model.to(memory_format=layout)
        images = torch.randn(count, 3, height, width).to(device, memory_format=layout)
        labels = torch.randint(0, 19, (count, height, width)).to(device)

        def one_pass() -> None:
            with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                output = model(images)
            torch.autograd.backward(training_loss(output, labels, config.loss).total)
            if kind == "cuda":
                torch.cuda.synchronize()

        return fastest(one_pass, budget)


def fastest(work: Callable[[], object], budget: float) -> float:
    """Seconds of the fastest run of some work after the first, which prepares kernels; two runs at the least."""
    found: list[float] = []
    end = time.perf_counter() + budget
    while len(found) < 2 or time.perf_counter() <= end:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found[1:])
