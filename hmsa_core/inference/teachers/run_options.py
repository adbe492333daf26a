"""How a checkpoint or a teacher is run: scales and flip are the checkpoint's where none are given. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hmsa_core.config import SCALES, Passes, check_scales
from hmsa_core.inference.teachers.classes import class_map, named_classes
from hmsa_core.inference.teachers.sources import Spec, only_checkpoint, parse, resolved
from hmsa_core.io.errors import ConfigError
from hmsa_core.io.remote import local_folder
from hmsa_core.models import read_meta
from hmsa_core.models.checkpoint import check_class_count, check_labels
from hmsa_core.taxonomy import ClassTable, plain

MAX_SKIPPED = 0.05  # share of the images that may be damaged or changed (at least one may) before a run fails


@dataclass(frozen=True)
class RunOptions:
    """How a checkpoint or another teacher is run."""

    teacher: tuple[str, ...]
    class_table: dict[str, Any] | None  # JSON; None = a checkpoint without class names
    num_classes: int
    passes: Passes

    def __str__(self) -> str:
        return " + ".join(self.teacher)

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint that `run_options` was asked about."""
        return Path(self.teacher[0])

    @property
    def classes(self) -> ClassTable:
        """Its classes; numbers are the names where it has none."""
        if self.class_table is None:
            return plain([str(i) for i in range(self.num_classes)])
        return ClassTable.from_json(self.class_table)


def teacher_options(
    teacher: Spec, classes: ClassTable | None, scales: Sequence[float] | None, flip: bool | None
) -> RunOptions:
    """Fill in what is not given: a checkpoint alone says how it is run, others run at scale 1, not mirrored.

    Raises:
        HmsaError: files that are not there, classes that do not fit, unusable scales, in one line.
    """
    alone = only_checkpoint(teacher)
    if alone is not None:
        if classes is not None:
            raise ConfigError("--classes is for teachers of other tools: a checkpoint has its own classes")
        run = run_options(alone, scales, flip)
        return replace(run, teacher=(str(run.checkpoint.resolve()),))
    sources = parse(teacher)
    for source in sources:
        _ = source.files  # whether they are there
        if source.adopted is not None and (scales is not None or flip is not None):
            message = f"{source}: says itself at which scales each network runs"
            raise ConfigError(message, hint="leave out --scales and --flip")
    classes = classes or named_classes(sources)
    check_class_count(classes.num_classes)
    for source in sources:
        class_map(source, classes)
    texts = resolved(sources, Path.resolve)
    passes = Passes(check_scales((1.0,) if scales is None else scales), bool(flip))
    return RunOptions(texts, classes.to_json(), classes.num_classes, passes)


def run_options(checkpoint: str | Path, scales: Sequence[float] | None = None, flip: bool | None = None) -> RunOptions:
    """Fill in what the checkpoint says about itself.

    Raises:
        CheckpointError: there is no usable checkpoint. ConfigError: another tool's network, or unusable scales.
    """
    (source,) = parse(checkpoint)
    if source.family != "checkpoint":
        raise ConfigError(
            f"{source}: is no checkpoint of this project",
            hint="`autolabel label` runs other networks, `evaluate` scores them, `certify` tests their labels",
        )
    path = local_folder(checkpoint)
    meta = read_meta(path)
    check_labels(meta, path)
    inference = meta.get("inference") or {}
    usual = (1.0,) if meta["kind"] == "single" else SCALES
    chosen = check_scales(scales if scales is not None else inference.get("scales") or usual)
    flipped = flip if flip is not None else bool(inference.get("flip", True))
    folder = path if path.is_dir() else path.parent
    return RunOptions((str(folder),), meta.get("class_table"), meta["num_classes"], Passes(chosen, flipped))
