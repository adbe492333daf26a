"""One optimiser step, exactly repeatable: passes, gradients, update, running average.

A step is `passes` forward and backward passes of `batch_per_rank` crops on each rank; together they are the
global batch. Pass i of rank r is pass i x world + r of the step, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hmsa_core.config import TrainConfig
from hmsa_core.data.transforms import normalise_batch
from hmsa_core.io.errors import CheckpointError, TrainingError
from hmsa_core.io.process import StopRequest
from hmsa_core.losses import LossParts, training_loss
from hmsa_core.models import MultiScaleModel
from hmsa_core.models.layers.batch_norm import SyncedBatchNorm
from hmsa_core.runtime.memory import is_out_of_memory, largest_fitting_crop, out_of_memory_error, release_memory
from hmsa_core.runtime.ranks import DTYPES, Ranks
from hmsa_core.training.data import PassBatch, Timeline, passes_a_step
from hmsa_core.training.figures import Meters, Verdict
from hmsa_core.training.parallel import replicate
from hmsa_core.training.recipe import RunningAverage, learning_rate, make_optimiser, seed_torch, set_training
from hmsa_core.training.state import Snapshot, optimiser_tensors


class Trainer:
    """Model, optimiser, average and figures of a run on one rank.

    `model` is on the device already, its batch norm synchronised if the settings say so.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: MultiScaleModel,
        ranks: Ranks,
        *,
        timeline: Timeline,
        stop: StopRequest,
        human_weight: float = 1.0,
    ) -> None:
        self.config, self.model, self.ranks, self.stop = config, model, ranks, stop
        self.timeline, self.human_weight = timeline, human_weight
        self.passes = passes_a_step(config, ranks.world)
        self.step = 0  # optimiser steps done
        self.saved_step: int | None = None  # newest durable state, for messages
        self.optimiser = make_optimiser(config, model)
        self.replicas = replicate(model, ranks, compiled=config.runtime.compile)
        self.average = RunningAverage(model, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.runtime.precision == "fp16")
        self.meters = Meters(ranks, ("images", "pseudo", *(f"class:{c}" for c in range(model.num_classes))))
        self._layout = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
        set_training(model, config)
        self._buffers = list(model.buffers())
        self._before = [b.clone() for b in self._buffers] if self.passes > 1 else []
        if ranks.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all crops have one size

    def rate_of(self, step: int) -> float:
        """Learning rate of a step."""
        timeline = self.timeline
        return learning_rate(self.config, step=step, epoch=timeline.epoch_of(step), total_steps=timeline.total_steps)

    def run_step(self, feed: Iterator[PassBatch]) -> Verdict:
        """Do one step; after a stop request to any rank between passes, the step is discarded completely.

        Raises:
            TrainingError: the loss is not finite (nothing was updated on a CPU), or memory ran out.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate_of(self.step) * group["factor"]
        self.replicas.zero_grad(self.optimiser)
        if self.passes > 1:
            torch._foreach_copy_(self._before, self._buffers)
        for index in range(self.passes):
            batch = next(feed)
            seed_torch(self.config.seed, "pass", self.step, index * self.ranks.world + self.ranks.rank)
            is_last = index == self.passes - 1
            with self.replicas.passing(is_last=is_last):
                self._pass(batch)
            verdict = self.meters.exchange(stop=self.stop.is_set())
            self.refuse_failure(verdict)
            if verdict.stop and not is_last:
                self._give_up()
                return verdict
        self.replicas.reduce()
        self._update()
        self.meters.fold()
        return verdict

    def settle(self) -> None:
        """Wait for all figures of finished steps; all ranks call it before logging or saving."""
        self.refuse_failure(self.meters.flush())
        self.meters.fold()

    def refuse_failure(self, verdict: Verdict) -> None:
        """Raise TrainingError on all ranks when one rank has a loss that is not finite."""
        if not verdict.failed:
            return
        found = sorted(failure for failures in self.ranks.gather(self.meters.failures) for failure in failures)
        step = found[0][0]
        names = [name for at, batch in found if at == step for name in batch]
        raise TrainingError(
            f"the loss is not finite at step {step} (epoch {self.timeline.epoch_of(step)}) on images"
            f" {', '.join(names)}; last good checkpoint: {self._last_good()}",
            hint="look at these images, or lower optimiser.lr, raise optimiser.warmup_steps, set optimiser.clip_norm",
        )

    def _last_good(self) -> str:
        return "none" if self.saved_step is None else f"step {self.saved_step}"

    def _pass(self, batch: PassBatch) -> None:
        parts = self._forward_backward(batch)
        if parts is None:
            raise self._out_of_memory(batch)
        self.meters.put(self.step, parts, batch.counts, batch.names)

    def _forward_backward(self, batch: PassBatch) -> dict[str, Tensor] | None:
        """Return the parts of the loss; None when memory ran out, after the release of all activations."""
        try:
            loss = self._loss(batch.images, batch.labels, batch.human)
            torch.autograd.backward(self.scaler.scale(loss.total / self.passes))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # documented, left out of __all__
            # RMI factorises covariances, which need finite scores.
            return {"loss": torch.tensor(torch.nan, device=self.ranks.device)}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return {**loss.parts, "loss": loss.total}

    def _loss(self, images: Tensor, labels: Tensor, human: Tensor | None) -> LossParts:
        device = self.ranks.device
        images = normalise_batch(images, device).contiguous(memory_format=self._layout)
        labels = labels.to(device, non_blocking=True).long()
        with self._autocast():
            output = self.replicas.forward(images)
        weight = None
        if human is not None:
            weight = torch.where(human.to(device, non_blocking=True), self.human_weight, 1.0)
        return training_loss(output, labels, self.config.loss, weight=weight)

    def _autocast(self) -> torch.autocast:
        precision = self.config.runtime.precision
        return torch.autocast(self.ranks.device.type, DTYPES[precision], enabled=precision != "fp32")

    def _give_up(self) -> None:
        torch._foreach_copy_(self._buffers, self._before)
        self.refuse_failure(self.meters.flush())
        self.meters.forget(self.step)
        self.meters.fold()

    def _update(self) -> None:
        if self.config.optimiser.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimiser.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1

    def _out_of_memory(self, batch: PassBatch) -> TrainingError:
        size, crop = len(batch.names), (batch.images.shape[1], batch.images.shape[2])
        self.optimiser.zero_grad(set_to_none=True)
        release_memory(self.ranks.device)
        for module in self.model.modules():
            if isinstance(module, SyncedBatchNorm):
                module.eval()  # training mode would wait for ranks that had enough memory; this run ends anyway

        def attempt(smaller: tuple[int, int]) -> None:
            images, labels = (torch.zeros(size, *smaller, *more, dtype=torch.uint8) for more in ((3,), ()))
            self.replicas.forward = self.model  # other ranks do not take part
            # Not `backward`: it would call DDP's hooks on the parameters, and this pass is not part of DDP's work.
            weights = [p for p in self.model.parameters() if p.requires_grad]
            torch.autograd.grad(self._loss(images, labels, None).total, weights, allow_unused=True)

        facts: dict[str, Any] = {"step": self.step, "batch": size, "device": self.ranks.device}
        try:
            fits = largest_fitting_crop(attempt, crop)
        except RuntimeError:  # an error of the search must not hide the first error
            return out_of_memory_error(crop, None, searched=False, **facts)
        return out_of_memory_error(crop, fits, **facts)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class scores N x C x H x W of whole images at scale 1.0, in the run's precision."""
        images = images.to(self.ranks.device, memory_format=self._layout)
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False  # images differ in size
        try:
            with self._autocast():
                return self.model.predict(images, scales=(1.0,)).logits.float()
        finally:
            torch.backends.cudnn.benchmark = benchmark

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Load the running average (if there is one) into the model for the block."""
        if self.average is None:
            yield
            return
        trained = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.average.copy_to(self.model)
        try:
            yield
        finally:
            self.model.load_state_dict(trained)

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the state, to save or to fill; TrainingError when a weight is not finite.

        The check is here because a state with NaN must never become the last good state.
        """
        groups = {
            "model": dict(self.model.state_dict()),
            "optimiser": optimiser_tensors(self.optimiser, {p: n for n, p in self.model.named_parameters()}),
        }
        if self.average is not None:
            groups["ema"] = self.average.tensors
        bad = _not_finite(groups)
        if bad:
            raise TrainingError(
                f"{bad[0]} (and {len(bad) - 1} more) is not finite after step {self.step};"
                f" last good checkpoint: {self._last_good()}",
                hint="lower optimiser.lr, raise optimiser.warmup_steps, or set optimiser.clip_norm",
            )
        return groups

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a saved state."""
        with torch.no_grad():
            for name, tensors in self.groups().items():
                found = snapshot.groups.get(name, {})
                if {k: t.shape for k, t in tensors.items()} != {k: t.shape for k, t in found.items()}:
                    raise CheckpointError(f"{snapshot.folder}: {name} tensors do not fit this model")
                for key, tensor in tensors.items():
                    tensor.copy_(found[key])
        self.step = self.saved_step = snapshot.step
        self.meters.load(snapshot.record["meters"])
        self.scaler.load_state_dict(snapshot.record["scaler"]) if self.scaler.is_enabled() else None


def _not_finite(groups: dict[str, dict[str, Tensor]]) -> list[str]:
    """Tensors with a value that is not finite; one transfer from the device serves all tensors."""
    floats = {
        f"{group} tensor {name}": tensor
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    are_finite = torch.stack([tensor.isfinite().all() for tensor in floats.values()]).tolist()
    return [name for name, is_finite in zip(floats, are_finite, strict=True) if not is_finite]
