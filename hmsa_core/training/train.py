"""The training job: pretraining, teacher, student and control are this loop with other settings.

Below `work`: `state/` (see `state`), `log.jsonl`, and in the end `model/` (checkpoint folder with
`lineage.json`). Stopping at any moment and starting again gives the same bytes on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from hmsa_core.config import TrainConfig
from hmsa_core.io.errors import ConfigError, InterruptedRunError, TrainingError
from hmsa_core.models import MultiScaleModel, build, initialise_from, read_meta
from hmsa_core.models.heads import PixelHeads
from hmsa_core.models.options import ModelOptions
from hmsa_core.runtime.context import JobContext
from hmsa_core.runtime.distributed import Ranks
from hmsa_core.runtime.memory import peak_memory_mb
from hmsa_core.runtime.progress import Progress
from hmsa_core.runtime.seeds import seed_everything
from hmsa_core.spec import TrainSpec
from hmsa_core.training.clock import StepClock
from hmsa_core.training.feed import Feed
from hmsa_core.training.outcome import save_model
from hmsa_core.training.rundata import RunData, open_run_data
from hmsa_core.training.state import StateStore
from hmsa_core.training.timeline import Timeline, passes_a_step
from hmsa_core.training.trainer import Trainer
from hmsa_core.training.validate import Validation

__all__ = ["run"]

LOG_EVERY = 10  # steps between log lines
_COARSEST = 32  # pixels a position of HRNet's coarsest grid stands for


def run(spec: TrainSpec, context: JobContext) -> None:
    """Train to the end, or until a signal; results lie below `spec.work`.

    Raises:
        ConfigError, InputError, StoreError: settings or data cannot be used.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: SIGTERM or SIGINT on any rank; the state is saved.
    """
    # Refuse what cannot work before any data are read.
    passes_a_step(spec.config, context.world)
    _refuse_small_crop(spec.config)
    data = open_run_data(spec, context.ranks)
    if _is_finished(spec.work / "model", data.key):
        context.log.write("finished", step=Timeline(data.plan, spec.config.global_batch).total_steps)
        return
    _Run(spec, context, data).run()


def _refuse_small_crop(config: TrainConfig) -> None:
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


def _is_finished(folder: Path, key: str) -> bool:
    return (folder / "model.json").exists() and read_meta(folder)["extra"].get("key") == key


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


class _Run:
    """One run on one rank."""

    def __init__(self, spec: TrainSpec, context: JobContext, data: RunData) -> None:
        self.spec, self.context, self.data = spec, context, data
        config = spec.config
        self.timeline = Timeline(data.plan, config.global_batch)
        model, fresh = make_model(spec, data.classes.num_classes, context.ranks)
        self.trainer = Trainer(config, model, context.ranks, timeline=self.timeline, stop=context.stop)
        self.states = StateStore(spec.work / "state", key=data.key, keep=config.keep_checkpoints)
        self.validation = self._open_validation()
        self.validated = 0  # epochs whose validation is over, or was not due
        self.clock = StepClock()
        self._resume(fresh)
        self.last_logged = self.trainer.step

    def _open_validation(self) -> Validation | None:
        wanted = self.spec.validation
        if wanted is None:
            return None
        return Validation(wanted, self.spec, self.context, set(self.data.lineage.images))

    def _resume(self, fresh: list[str]) -> None:
        ranks, log = self.context.ranks, self.context.log
        if ranks.is_main:
            self.states.sweep()
        ranks.barrier()
        snapshot = self.states.latest()
        found = ranks.gather("no state" if snapshot is None else f"step {snapshot.step}")
        if len(set(found)) > 1:  # only gradients are averaged from here on: the ranks would stay apart
            told = ", ".join(f"rank {rank}: {what}" for rank, what in enumerate(found))
            raise TrainingError(
                f"{self.spec.work}: the ranks read different states ({told})",
                hint="the work folder has to be on a disk that all nodes see alike; run the same command again",
            )
        if snapshot is not None:
            self.trainer.restore(snapshot)
            self.validated = int(snapshot.record["validated"])
        self._rewind_log()
        log.write(
            "start",
            step=self.trainer.step,
            steps=self.timeline.total_steps,
            epochs=self.timeline.epochs,
            ranks=ranks.world,
            passes=self.trainer.passes,
            device=str(ranks.device),
            key=self.data.key,
            stage=self.spec.stage,
            images={"fine": len(self.data.fine), "pseudo": len(self.data.pseudo)},
            init_from=str(self.spec.init_from or ""),
            initialised_fresh=fresh,
        )

    def _rewind_log(self) -> None:
        """Forget lines about what is done again, so that the log reads as if nothing had happened."""
        step, validated = self.trainer.step, self.validated

        def is_done(line: dict[str, Any]) -> bool:
            if line["event"] == "validation":
                return int(line["epoch"]) <= validated
            return int(line.get("step", 0)) <= step

        self.context.log.rewind(is_done)

    def run(self) -> None:
        """Train, validate, save; see `run` above for errors."""
        spec, config = self.spec, self.spec.config
        total, batch = self.timeline.total_steps, config.global_batch
        progress = self.context.progress(
            total * batch, what=spec.stage, unit="crops", initial=self.trainer.step * batch
        )
        feed = Feed(self.data, self.timeline, self.context.ranks, config, self.trainer.step, self.clock)
        with feed, progress:
            while self.trainer.step < total:
                self._validate()
                verdict = self.trainer.run_step(feed)
                if self.trainer.step > self.last_logged:
                    self._after_step(progress)
                if verdict.stop:
                    self._save_and_leave()
            self._validate()
        if self.context.is_main:
            digest = save_model(spec, self.context, self.trainer, self.data)
            self.context.log.write("finished", step=total, weights_sha256=digest)

    def _after_step(self, progress: Progress) -> None:
        step, total = self.trainer.step, self.timeline.total_steps
        is_edge = self.timeline.is_edge(step)
        if is_edge or step % LOG_EVERY == 0:
            self._log_window(progress)
        if is_edge:
            self._log_epoch()
        self.last_logged = step
        if step % self.spec.config.checkpoint_every == 0 or step == total:
            self._save()

    def _log_window(self, progress: Progress) -> None:
        step = self.trainer.step
        self.trainer.settle()
        means, counts = self.trainer.meters.read("window")
        seconds, waited = self.clock.read()
        self.context.log.write(
            "train",
            step=step,
            epoch=self.timeline.epoch_of(step - 1),
            lr=self.trainer.rate_of(step - 1),
            images=counts["images"],
            pseudo=counts["pseudo"],
            images_per_s=counts["images"] / seconds,
            data_wait=waited,
            memory_mb=peak_memory_mb(self.context.device),
            **means,
        )
        progress.update(step * self.spec.config.global_batch - progress.done, loss=means["loss"])

    def _log_epoch(self) -> None:
        step = self.trainer.step
        epoch = self.timeline.epoch_of(step - 1)
        means, counts = self.trainer.meters.read("epoch")
        pixels = {n: counts[f"class:{i}"] for i, n in enumerate(self.data.classes.classes)}
        self.context.log.write(
            "epoch",
            step=step,
            epoch=epoch,
            images=counts["images"],
            pseudo=counts["pseudo"],
            pixels=pixels,
            plan=asdict(self.data.plan.report(epoch)),
            **means,
        )

    def _validate(self) -> None:
        """Score the model if an epoch has just ended and it is due; interruptible, see `_save_and_leave`."""
        step = self.trainer.step
        ended = self.timeline.epoch_of(step)
        if self.validation is None or ended <= self.validated or not self.timeline.is_edge(step):
            return
        if self.validation.is_due(ended, self.timeline.epochs):
            with self.clock.excluded():
                scores = self.validation.run(self.trainer)
            if scores is None:
                self._save_and_leave()
            self.context.log.write("validation", step=step, epoch=ended, **(scores or {}))
        self.validated = ended

    def _save(self) -> None:
        """Save the state once a step; rank 0 writes, the others go on."""
        step = self.trainer.step
        if self.trainer.saved_step == step:
            return
        self.trainer.settle()
        groups = self.trainer.groups()  # on every rank: it refuses weights that are not finite
        record = {
            "epoch": self.timeline.epoch_of(step),
            "crops": step * self.spec.config.global_batch,
            "global_batch": self.spec.config.global_batch,
            "ranks": self.context.world,
            "validated": self.validated,
            "meters": self.trainer.meters.state(),
            "scaler": self.trainer.scaler.state_dict(),
            "seed": self.spec.config.seed,
        }
        if self.context.is_main:
            with self.clock.excluded():
                self.states.save(step, groups, record)
        self.trainer.saved_step = step

    def _save_and_leave(self) -> NoReturn:
        self._save()
        # A rank that leaves first would make torchrun stop the one that is still writing.
        self.context.ranks.barrier()
        step, total = self.trainer.step, self.timeline.total_steps
        self.context.log.write("stopped", step=step)
        raise InterruptedRunError(
            f"{self.spec.stage}: stopped by a signal at step {step} of {total}, the state is saved",
            hint="run the same command again to go on",
        )
