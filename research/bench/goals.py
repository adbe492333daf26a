"""What the project asks of its own speed: each goal next to the figure of the table, and who measured it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from research.bench.scaling import scaling_table
from research.figures import figures
from research.markdown import table

TABLE = "bench"


class Goal(NamedTuple):
    """A bound for one figure: the benchmark, and the path of the figure in its result."""

    what: str
    bench: str
    path: str
    bound: float
    at_least: bool = True

    def is_met(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def _labelling(way: str) -> tuple[Goal, ...]:
    """Labelling {0.5, 1, 2} + flip in one precision, against the plain way in fp32; weights are random."""
    w48 = f"cases.w48.ways.{way}"
    return (
        Goal(f"labelling in {way}, W48 at 512x1024, times the plain way's speed", "infer", f"{w48}.speedup", 1.6),
        Goal("... its peak memory, share of the plain way's", "infer", f"{w48}.peak_share", 0.5, at_least=False),
        Goal("... equal thresholded labels", "infer", f"{w48}.agreement.thresholded_labels", 0.995),
        Goal("... codes within five steps", "infer", f"{w48}.agreement.codes_within_5", 0.99),
        Goal(f"labelling in {way}, demo's narrow model", "infer", f"cases.micro.ways.{way}.speedup", 1.2),
        Goal(f"labelling in {way}, CamVid's narrow model", "infer", f"cases.tiny.ways.{way}.speedup", 1.2),
    )


def _trained(profile: str) -> tuple[Goal, ...]:
    """bf16 against fp32 with a workspace's trained teacher."""
    name = f"agreement-{profile}"
    return (
        Goal(f"bf16, teacher of profile {profile}: equal thresholded labels", name, "thresholded_labels", 0.995),
        Goal("... codes within five steps", name, "codes_within_5", 0.99),
    )


def _foreign(family: str, what: str) -> tuple[Goal, ...]:
    """`autolabel label` with a network of another tool, check of the files included, beside a bare loop."""
    return (
        Goal(f"`autolabel label`, {what}: speed over a bare loop's", "foreign", f"{family}.1.ratio.median", 0.9),
        Goal("... two processes over two bare loops", "foreign", f"{family}.2.ratio.median", 0.9),
    )


_CASES = ("hrnet_tiny:128x192:4", "hrnet_w18:256x512:1", "hrnet_w48:256x512:1")  # of bench_train_step.py
_STEP = "training step, hierarchical over single"
_STEP_S = "cases.hrnet_w48:1024x2048:1.seconds_a_step.hierarchical"  # on a GPU

GOALS = (
    *(goal for way in ("fp32", "bf16") for goal in _labelling(way)),
    *_trained("camvid"),
    *_trained("demo"),
    Goal("`autolabel label`: share of its time in the model, 512x1024", "labelling", "area.512x1024.model_share", 0.9),
    Goal("`autolabel label`: memory, 5,000 images over 50, MB", "labelling", "memory_growth_mb", 100, at_least=False),
    *_foreign("onnx", "ONNX file"),
    *_foreign("hf", "folder of transformers"),
    *(Goal(f"{_STEP}, {case}", "train_step", f"cases.{case}.ratio.median", 1.4, at_least=False) for case in _CASES),
    Goal("RMI forward + backward, times the plain formula's speed", "rmi", "plain_over_ours.best", 6.0),
    Goal("RMI: extra peak memory, share of the plain formula's", "rmi", "memory_share", 1 / 3, at_least=False),
    Goal("RMI over binary cross-entropy", "rmi", "ours_over_bce.best", 2.0, at_least=False),
    Goal("loader, images a second of one core, over Pillow + numpy", "loader", "ratio.median", 2.0),
    Goal("label bytes over two Pillow PNGs", "store", "generated.over_pillow", 1.05, at_least=False),
    Goal("encoding labels of 1024x2048 a second, one core", "store", "generated.encode_per_s", 8),
    Goal("reading and thresholding them", "store", "generated.read_threshold_per_s", 25),
    Goal("the whole chain of profile tiny, seconds", "chain", "seconds", 120, at_least=False),
    Goal("... of processor time", "chain", "cpu_seconds", 150, at_least=False),
    Goal("... a second `dvc repro`, which runs nothing", "chain", "again_seconds", 3, at_least=False),
    Goal("a new threshold over 20,000 images, seconds", "store", "statistics.warm_s", 1.0, at_least=False),
)


def goals_lines(tables: Path, goals: tuple[Goal, ...] = GOALS) -> list[str]:
    """Goal, bound, figure, whether it is met; what was not measured says so."""
    known = _known(tables)
    rows = []
    for goal in goals:
        value = known.get(goal.bench, {}).get(goal.path)
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:.3g}"
        met = "not measured" if value is None else "yes" if goal.is_met(value) else "**no**"
        rows.append((goal.what, bound, "-" if value is None else f"{value:.3g}", met))
    return table(("goal", "bound", "measured", "met"), rows)


def _known(tables: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in figures(tables / f"{TABLE}.parquet"):
        if line.value is not None:
            found.setdefault(line.row, {})[line.metric] = line.value
    return found


def bench_lines(tables: Path) -> list[str]:
    """Where each benchmark was run: command, machine, commit; a line for each machine."""
    lines = figures(tables / f"{TABLE}.parquet")
    made = dict.fromkeys((line.row, f"`{line.setting}`", line.machine, line.commit) for line in lines)
    return table(("benchmark", "command", "machine", "commit"), made)


def gpu_lines(tables: Path) -> list[str]:
    """W48 at 1024x2048 on one GPU and on more: the bound, which is computed, next to what `make bench-gpu` measured."""
    known = _known(tables)
    machines = {line.row: line.machine.partition(" cores, ")[2] for line in figures(tables / f"{TABLE}.parquet")}
    bound = known.get("roofline", {})
    cells = [
        ("labelling an image, {0.5, 1, 2} + flip, bf16", "label", "gpu-infer", "cases.w48.ways.bf16.seconds"),
        ("... in `autolabel label`, with files and start", "label", "gpu-labelling", "seconds"),
    ]
    ranks = sorted(int(name.split("-")[-1]) for name in known if name.startswith("gpu-train-")) or [1]
    cells += [
        (f"training step, {{0.5, 1}}, bf16, a crop a GPU, {n} GPU(s)", "train", f"gpu-train-{n}", _STEP_S)
        for n in ranks
    ]
    rows = []
    for what, kind, row, path in cells:
        least, found = bound.get(f"{kind}.bound_s"), known.get(row, {}).get(path)
        counted = f"{bound.get(f'{kind}.tflop', 0):.1f} TFLOP, {bound.get(f'{kind}.gb', 0):.0f} GB"
        measured = "computed, not measured" if found is None else f"{1e3 * found:.0f} ms"
        reached = f"{100 * least / found:.0f} %" if found and least else "-"
        least_ms = "-" if least is None else f"{1e3 * least:.0f} ms"
        rows.append((what, counted, least_ms, measured, reached, machines.get(row, "-")))
    return table(("what", "work", "bound", "measured", "share of the bound", "GPU"), rows)


def scaling_lines(tables: Path) -> list[str]:
    """Time, money, storage and files at four sizes, from the measured rates."""
    known = _known(tables)
    gpu = {"gpu_s_per_image": known["gpu-labelling"]["seconds"], "gpu_s_per_crop": known["gpu-train-1"][_STEP_S]}
    return scaling_table(known["scaling"] | known["index"] | gpu)
