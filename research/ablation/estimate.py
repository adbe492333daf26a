"""How long the missing cells will take: multiply-accumulates, and the rate at which this kind of machine works."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.runtime.progress import read_log
from pipeline.provenance import describe_machine, same_kind
from pipeline.stages import precision
from pipeline.stages.support import role_index
from pipeline.workspace import Workspace
from research.ablation import jobs
from research.ablation.cells import Cell
from research.ablation.material import Scale, train_config
from research.ablation.plan import Row, Training
from research.ablation.run import Pending, model_of

__all__ = ["Estimate", "Rates", "clock", "estimate", "measured_rates"]


@dataclass(frozen=True)
class Rates:
    """Multiply-accumulates a second, and where that was seen; None = never."""

    train: float | None
    evaluate: float | None
    source: str


@dataclass(frozen=True)
class Estimate:
    """Seconds of a group of cells that share a training; None where no rate is known."""

    rows: tuple[str, ...]
    seed: int
    train_s: float | None
    evaluate_s: float | None


def measured_rates(ws: Workspace, results: Path) -> Rates:
    """From finished cells of this kind of machine with trainings like the workspace's, else from its own teacher.

    Small crops in fp32 do a fraction of the multiply-accumulates a second that large ones in bf16 do.
    """
    mine, like = describe_machine(), _kind_of_work(ws.params.teacher_train.model_dump(mode="json"))
    found = map(Cell.load, sorted(results.glob("*/*-seed*.json")))
    like_mine = [c for c in found if same_kind(c.record["machine"], mine)]
    cells = [c for c in like_mine if c.record["machine"].get("family")] or like_mine  # older records tell no family
    own = [
        c
        for c in cells
        if "copied_from" not in c.record and _kind_of_work(c.record["settings"].get("training")) == like
    ]
    train = _rate((c.record["macs"]["train_total"], c.record["seconds"]["train"]) for c in own)
    evaluated = _rate(
        (c.record["macs"]["inference_per_image"] * c.record["evaluation"]["images"], c.record["seconds"]["evaluate"])
        for c in own
    )
    if train is not None:
        return Rates(train, evaluated, f"{len(own)} finished cells of such trainings on this kind of machine")
    teacher = _teacher_rate(ws)
    if teacher is not None:
        return Rates(teacher, None, "the log of the workspace's own teacher")
    return Rates(None, None, "nothing was measured on this kind of machine yet")


def _kind_of_work(training: dict[str, Any] | None) -> tuple[Any, ...] | None:
    """What the rate of a training depends on most; None for a row without a training."""
    if training is None:
        return None
    return training["model"]["trunk"], tuple(training["crop"]), training["runtime"]["precision"]


def _rate(work: Iterable[tuple[float, float | None]]) -> float | None:
    known = [(macs, seconds) for macs, seconds in work if seconds]
    total = sum(seconds for _, seconds in known)
    return sum(macs for macs, _ in known) / total if total else None


def _teacher_rate(ws: Workspace) -> float | None:
    """From the log of teacher-train's last key."""
    ledger = ws.work("teacher-train") / "keys.json"
    order = atomic.read_json(ledger).get("teacher", []) if ledger.exists() else []
    log = ws.work("teacher-train") / order[-1] / "log.jsonl" if order else None
    if log is None or not log.exists():
        return None
    lines = [line for line in read_log(log) if line["event"] == "train"]
    seconds = sum(line["images"] / line["images_per_s"] for line in lines)
    section = ws.params.teacher_train
    macs = jobs.count_macs(ws, section.model, section.crop, ())["train_per_crop"]
    return macs * sum(line["images"] for line in lines) / seconds if seconds else None


def estimate(ws: Workspace, cells: Sequence[Pending], scale: Scale, rates: Rates) -> list[Estimate]:
    """Seconds of each training with the evaluations of its rows. What the work folder holds already is not known."""
    groups: dict[tuple[Training | None, int], list[Pending]] = {}
    for cell in cells:
        groups.setdefault((cell.row.training, cell.seed), []).append(cell)
    images = len(precision.fine_samples(ws, "report"))
    learning = len(Index.load(role_index(ws, "learn")).select(kinds=("fine",)))
    return [_one(ws, group, scale, rates, images, learning) for group in groups.values()]


def _one(ws: Workspace, group: Sequence[Pending], scale: Scale, rates: Rates, images: int, learning: int) -> Estimate:
    rows = [cell.row for cell in group]
    macs = _macs(ws, rows, scale)
    training = rows[0].training
    train_s: float | None = 0.0
    if training is not None:
        config = train_config(ws.params, training, group[0].seed, scale)
        crops = config.epochs * (config.epoch_samples or learning)
        train_s = macs["train_per_crop"] * crops / rates.train if rates.train else None
    # Forward passes alone run at least as fast as training does; used until an evaluation was seen.
    rate = rates.evaluate or rates.train
    evaluate_s = sum(macs["inference"].values()) * images / rate if rate else None
    return Estimate(tuple(r.name for r in rows), group[0].seed, train_s, evaluate_s)


def _macs(ws: Workspace, rows: Sequence[Row], scale: Scale) -> dict[str, Any]:
    model, crop = model_of(ws, rows[0], scale)
    return jobs.count_macs(ws, model, crop, [row.setting for row in rows])


def clock(seconds: float | None) -> str:
    """Minutes for people."""
    return "?" if seconds is None else f"{seconds / 60:.1f} min"
