"""The training job: pretraining, teacher, student and control are this loop with other settings.

Below `work`: `state/` (see `state`), `log.jsonl`, and in the end `model/` (checkpoint folder with
`lineage.json`). Stopping at any moment and starting again gives the same bytes on a CPU.
"""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch.nn import functional as F

from hmsa_core import __version__
from hmsa_core.config import MEAN, SCALES, STD, TrainConfig
from hmsa_core.data import prepare
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.transforms import normalise, to_long_edge
from hmsa_core.data.walk import walk
from hmsa_core.io.errors import ConfigError, InterruptedRunError, TrainingError
from hmsa_core.io.locks import FileLock
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.lineage import LINEAGE_FILE
from hmsa_core.metrics import confusion_counts, iou_of, mean_iou_of
from hmsa_core.models import read_meta, save
from hmsa_core.models.pretrained import describe
from hmsa_core.runtime.memory import is_out_of_memory, peak_memory_mb
from hmsa_core.runtime.progress import Progress
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.runtime.tracking import follow
from hmsa_core.spec import FineData, Selection, TrainSpec, ValidationData
from hmsa_core.taxonomy.class_files import KNOWN
from hmsa_core.training.data import RunData, Timeline, feeding, open_run_data, passes_a_step
from hmsa_core.training.figures import StepClock
from hmsa_core.training.recipe import make_model, refuse_small_crop, settle_runtime
from hmsa_core.training.state import StateStore
from hmsa_core.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
LOG_EVERY = 10  # steps between log lines


def train(
    images: str | Path,
    labels: str | Path,
    *,
    classes: str | Path,
    out: str | Path,
    config: TrainConfig | None = None,
    init_from: str | Path | None = None,
) -> Path:
    """Train in this process on a folder of images and a folder of label maps; return the checkpoint folder.

    The same call continues a stopped run, and does nothing after a finished run.

    Args:
        images: folder of images.
        labels: folder of label maps with the same stems; pixels hold class ids.
        classes: class file (docs/own-data.md), or the name of a public label set: cityscapes, mapillary_v1.2, voc, ...
        out: folder of the result: `model/` (checkpoint), `log.jsonl`, `state/` (for resuming), `index/`.
        config: settings; the default is the paper's recipe, which is meant for 32 GPUs.
        init_from: checkpoint folder whose weights start the run; heads with another class count start anew.

    Raises:
        ConfigError, InputError: settings or data cannot be used.
        TrainingError: the loss is not finite, or memory ran out.
        LockedError: another run uses `out`.

    Example:
        >>> from hmsa_core.config import TrainConfig
        >>> from hmsa_core.training import train
        >>> config = TrainConfig.model_validate({
        ...     "model": {"trunk": "hrnet_micro"}, "crop": [64, 96], "epochs": 2,
        ...     "global_batch": 2, "optimiser": {"lr": 0.05, "lr_scaling": "none"},
        ... })
        >>> train("images", "labels", classes="classes.json", out="run", config=config)
        PosixPath('run/model')
    """
    config, work = config or TrainConfig(), Path(out)
    images, labels = Path(images).absolute(), Path(labels).absolute()
    root = Path(os.path.commonpath([images, labels]))
    folders = tuple(sorted(walk(images).files))
    source = SourceSpec(
        kind="folder",
        root=str(root),
        images=str(images.relative_to(root)),
        labels=str(labels.relative_to(root)),
        splits=None if folders in ((), ("",)) else folders,
        names="stem" if len(folders) < 2 else "path",
        classes=str(classes if classes in KNOWN else Path(classes).absolute()),
    )
    sampling = config.sampling
    summary = prepare.build(
        source,
        RolesSpec(learn_splits=tuple(folder or "all" for folder in folders)),
        work / "index",
        tile=sampling.tile,
        min_pixels=sampling.min_pixels,
        previous=work / "index",
    )
    _log(summary, work / "index" / "quarantine.parquet")
    index, centroids = (work / "index" / f"{start}{source.name}.parquet" for start in ("", "centroids-"))
    return train_spec(
        TrainSpec(
            work=work,
            roots={source.name: root},
            stage="train",
            config=config,
            fine=FineData(selection=Selection(index=index, roles=("learn",)), centroids=centroids),
            init_from=Path(init_from) if init_from is not None else None,
        )
    )


def _log(summary: prepare.Summary, quarantine: Path) -> None:
    """Report the number of training images and the reasons for others; warn if images are left out."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in summary.refused.items()) or "none"
    learn = summary.by_role.get("learn", 0)
    text = f"train: {summary.images + summary.refused_images} images found, {learn} learn, left out: {left_out}"
    _LOG.log(
        logging.WARNING if summary.refused else logging.INFO,
        "%s",
        f"{text}; each is named in {quarantine}" if summary.refused else text,
    )
    for note in summary.all_notes():
        _LOG.warning("train: %s", note)


def train_spec(spec: TrainSpec) -> Path:
    """Run a training spec in this process, as one rank; return the checkpoint folder. Errors are those of `run`."""
    with FileLock(spec.work / "rank0.lock", what=f"a training in {spec.work}"):
        run(spec, JobContext.alone(spec.config.runtime, spec.work))
    return spec.work / "model"


def run(spec: TrainSpec, context: JobContext) -> None:
    """Train to the end, or until a signal; results lie below `spec.work`.

    Raises:
        ConfigError, InputError, StoreError: settings or data cannot be used.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: SIGTERM or SIGINT on any rank; the state is saved.
    """
    spec = settle_runtime(spec, context)
    # Refuse impossible settings before any data are read.
    passes_a_step(spec.config, context.ranks.world)
    refuse_small_crop(spec.config, context.ranks.norm_ranks)
    data = open_run_data(spec, context.ranks)
    total, batch = Timeline(data.plan, spec.config.global_batch).total_steps, spec.config.global_batch
    model = spec.work / "model"
    if (model / "model.json").exists() and read_meta(model)["extra"].get("key") == data.key:
        context.log.write("finished", step=total)
        return
    job = _Run(spec, context, data)
    trainer, trained = job.trainer, spec.lineage.get("job", "")
    what = spec.stage if trained in spec.stage else f"{spec.stage} ({trained})"  # student-train trains a control, too
    progress = context.progress(total * batch, what=what, unit="crops", initial=trainer.step * batch)
    with feeding(data, job.timeline, context.ranks, spec.config, trainer.step, job.clock) as feed, progress:
        while trainer.step < total:
            job.validate()
            verdict = trainer.run_step(feed)
            job.after_step(progress)
            context.beat()
            if verdict.stop:
                job.save_and_leave()
        job.validate()
    if context.ranks.is_main:
        digest = save_model(spec, context, trainer, data)
        context.log.write("finished", step=total, weights_sha256=digest)


class _Run:
    """Work around the steps of one run on one rank: resuming, the log, states, validation."""

    def __init__(self, spec: TrainSpec, context: JobContext, data: RunData) -> None:
        self.spec, self.context, self.data = spec, context, data
        config = spec.config
        self.timeline = Timeline(data.plan, config.global_batch)
        model, fresh = make_model(spec, data.classes.num_classes, context.ranks)
        self.trainer = Trainer(
            config,
            model,
            context.ranks,
            timeline=self.timeline,
            stop=context.stop,
            human_weight=data.plan.pseudo_config.human_weight,
        )
        self.states = StateStore(spec.work / "state", key=data.key, keep=config.keep_checkpoints)
        self.validation = None
        if spec.validation is not None:
            self.validation = Validation(spec.validation, spec, context, set(data.lineage.images))
        self.validated = 0  # epochs whose validation is finished or was not due
        self.clock = StepClock()
        self._resume(fresh)
        self.last_logged = self.trainer.step

    def _resume(self, fresh: list[str]) -> None:
        ranks, log = self.context.ranks, self.context.log
        if ranks.is_main:
            self.states.sweep()
        ranks.barrier()
        snapshot = self.states.latest()
        found = ranks.gather("no state" if snapshot is None else f"step {snapshot.step}")
        if len(set(found)) > 1:  # only gradients are averaged later: the ranks would stay different
            details = ", ".join(f"rank {rank}: {what}" for rank, what in enumerate(found))
            raise TrainingError(
                f"{self.spec.work}: the ranks read different states ({details})",
                hint="the work folder has to be on a disk that all nodes see alike; run the same command again",
            )
        if snapshot is not None:
            self.trainer.restore(snapshot)
            self.validated = int(snapshot.record["validated"])
        self._rewind_log()
        self._follow_log()
        log.write(
            "start",
            step=self.trainer.step,
            steps=self.timeline.total_steps,
            epochs=self.timeline.epochs,
            ranks=ranks.world,
            passes=self.trainer.passes,
            norm_batch=ranks.norm_ranks * self.spec.config.batch_per_rank,
            device=str(ranks.device),
            key=self.data.key,
            stage=self.spec.stage,
            images={"fine": len(self.data.fine), "pseudo": len(self.data.pseudo)},
            human_weight=self.trainer.human_weight,
            init_from=str(self.spec.init_from or ""),
            initialised_fresh=fresh,
        )

    def _rewind_log(self) -> None:
        """Remove log lines of repeated steps, so that the log equals that of an uninterrupted run."""
        step, validated = self.trainer.step, self.validated

        def is_done(line: dict[str, Any]) -> bool:
            if line["event"] == "validation":
                return int(line["epoch"]) <= validated
            return int(line.get("step", 0)) <= step

        self.context.log.rewind(is_done)

    def _follow_log(self) -> None:
        """Send each later log line also to the trackers in the settings."""
        trackers = self.spec.config.runtime.trackers
        if trackers and self.context.ranks.is_main:
            root, run = self.spec.tracking or self.spec.work, f"{self.spec.stage}-{self.data.key[:8]}"
            self.context.log.follower = follow(trackers, root, run, self.data.key, self.trainer.step)

    def after_step(self, progress: Progress) -> None:
        """Log and save if due; do nothing for a discarded step."""
        step, total = self.trainer.step, self.timeline.total_steps
        if step == self.last_logged:
            return
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
            memory_mb=peak_memory_mb(self.context.ranks.device),
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
            plan=self.data.plan.report(epoch),
            **means,
        )

    def validate(self) -> None:
        """Score the model if an epoch has just ended and validation is due; a stop request ends the validation."""
        step = self.trainer.step
        ended = self.timeline.epoch_of(step)
        if self.validation is None or ended <= self.validated or not self.timeline.is_edge(step):
            return
        every = self.validation.every_epochs
        if ended // every > self.validated // every or ended >= self.timeline.epochs:  # a step may end several epochs
            with self.clock.counting("excluded"):
                scores = self.validation.run(self.trainer)
            if scores is None:
                self.save_and_leave()
            self.context.log.write("validation", step=step, epoch=ended, **(scores or {}))
        self.validated = ended

    def _save(self) -> None:
        """Save the state at most once a step; rank 0 writes, other ranks continue."""
        step = self.trainer.step
        if self.trainer.saved_step == step:
            return
        self.trainer.settle()
        groups = self.trainer.groups()  # on every rank: `groups` refuses weights that are not finite
        record = {
            "validated": self.validated,
            "meters": self.trainer.meters.state(),
            "scaler": self.trainer.scaler.state_dict(),
        }
        if self.context.ranks.is_main:
            with self.clock.counting("excluded"):
                self.states.save(step, groups, record)
        self.trainer.saved_step = step

    def save_and_leave(self) -> NoReturn:
        """Save the state and raise InterruptedRunError, on all ranks."""
        self._save()
        # A rank that exits first would make torchrun stop the rank that is still writing.
        self.context.ranks.barrier()
        step, total = self.trainer.step, self.timeline.total_steps
        self.context.log.write("stopped", step=step)
        raise InterruptedRunError(
            f"{self.spec.stage}: stopped by a signal at step {step} of {total}, the state is saved",
            hint="run the same command again to go on",
        )


class Validation:
    """Images for validation; they are not used for training or for any choice.

    Raises:
        ConfigError: the selection is empty, or contains a training image.
    """

    def __init__(self, wanted: ValidationData, spec: TrainSpec, context: JobContext, learned: set[str]) -> None:
        self._context, self._config, self.every_epochs = context, spec.config, wanted.every_epochs
        chosen = wanted.selection
        index = Index.load(chosen.index)
        self._samples = [s for s in index.select(**chosen.filters()) if s.label]
        self._root, self._classes = spec.root(index.root), index.classes
        if not self._samples:
            raise ConfigError(f"validation: no image of {chosen.index} has a fine label and passes the selection")
        both = [s.name for s in self._samples if s.image_sha256 in learned]
        if both:
            raise ConfigError(f"validation: {len(both)} images are learned from as well, first {both[0]}")

    def run(self, trainer: Trainer) -> dict[str, Any] | None:
        """Mean IoU and IoU by class; None after a stop request to any rank. All ranks call it."""
        ranks, classes = self._context.ranks, self._classes
        counts = np.zeros((classes.num_classes, classes.num_classes + 1), np.int64)
        with trainer.averaged():
            for first in range(0, len(self._samples), ranks.world):
                if ranks.any(self._context.stop.is_set()):
                    return None
                self._context.beat()
                if first + ranks.rank < len(self._samples):
                    counts += self._score(trainer, self._samples[first + ranks.rank])
        total = ranks.sum_(torch.from_numpy(counts)).numpy()
        iou = iou_of(total)
        by_class = dict(zip(classes.classes, map(float, iou), strict=True))
        return {"mean_iou": float(mean_iou_of(iou)), "images": len(self._samples), "iou": by_class}

    def _score(self, trainer: Trainer, sample: Sample) -> np.ndarray[Any, np.dtype[np.int64]]:
        image = read_image(self._root / sample.image, sha256=sample.image_sha256)
        label = read_label(self._root / sample.label, self._classes, sha256=sample.label_sha256)
        if self._config.long_edge is not None:
            image = to_long_edge(image, self._config.long_edge)
        try:
            logits = trainer.predict(normalise(image)[None])
            if logits.shape[2:] != label.shape:
                logits = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=False)
            pred = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise TrainingError(
                f"validation at step {trainer.step}: out of memory on image {sample.name} of {size} pixels, which is "
                "judged whole",
                hint="set validate_every to 0; the training goes on from its last state",
            ) from error
        return confusion_counts(pred, label, self._classes.num_classes)


def save_model(spec: TrainSpec, context: JobContext, trainer: Trainer, data: RunData) -> str:
    """Write `work/model/` on rank 0: the averaged weights if there are any, else the last weights.

    Nothing in it depends on the clock: the same run gives the same bytes. Returns the digest of the weights.
    """
    folder = spec.work / "model"
    if trainer.average is not None:
        trainer.average.copy_to(trainer.model)
    list_sha256 = data.lineage.save(folder / LINEAGE_FILE)
    runtime = spec.config.runtime
    weights, trunk = spec.config.model.trunk_weights, spec.config.model.trunk
    lineage = {
        **spec.lineage,
        **({} if spec.init_from or weights == "none" else {"trunk_weights": describe(weights, trunk)}),
        **data.lineage.summary(list_sha256),
        **_certificate(spec),
        **({"stores": data.stores} if data.stores else {}),
        "stage": spec.stage,
        "config": spec.config.model_dump(mode="json"),
        "machine": {
            "ranks": context.ranks.world,
            "device": context.ranks.device.type,
            "threads": runtime.thread_count,
            "channels_last": runtime.channels_last,
            "precision": runtime.precision,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "code": __version__,
        },
    }
    scales = SCALES if spec.config.model.kind != "single" else (1.0,)
    return save(
        trainer.model,
        folder,
        class_table=data.classes.to_json(),
        lineage=lineage,
        inference={"scales": scales, "flip": True, "mean": list(MEAN), "std": list(STD)},
        extra={"key": data.key, "steps": trainer.step, "averaged": trainer.average is not None},
    )


def _certificate(spec: TrainSpec) -> dict[str, Any]:
    """The certificate of the auto-labels, if the run has exactly one store with a certificate."""
    if len(spec.pseudo) != 1:
        return {}
    found = (read_manifest(spec.pseudo[0].store)["policy"] or {}).get("certificate")
    return {} if found is None else {"certificate": found}
