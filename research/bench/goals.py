"""What the project asks of its own speed: each goal beside what the committed results say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GOALS", "Goal", "table"]


@dataclass(frozen=True)
class Goal:
    """A bound for a figure: result file, path of the figure in it (the best of several paths counts)."""

    what: str
    result: str
    paths: tuple[str, ...]
    bound: float
    at_least: bool = True

    def value(self, figures: Mapping[str, Mapping[str, float]]) -> float | None:
        """The figure that counts; None = not measured."""
        known = [figures[self.result][path] for path in self.paths if path in figures.get(self.result, {})]
        if not known:
            return None
        return max(known) if self.at_least else min(known)

    def is_met(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def _labelling(way: str) -> tuple[Goal, ...]:
    """Labelling {0.5, 1, 2} + flip in one precision, against the plain way in fp32; weights are random."""
    w48 = f"cases.w48.ways.{way}"
    return (
        Goal(f"labelling in {way}, W48 at 512x1024, against the plain way", "infer", (f"{w48}.speedup",), 1.6),
        Goal("... its peak memory, share of the plain way's", "infer", (f"{w48}.peak_share",), 0.5, at_least=False),
        Goal("... equal thresholded labels", "infer", (f"{w48}.agreement.thresholded_labels",), 0.995),
        Goal("... codes within five steps", "infer", (f"{w48}.agreement.codes_within_5",), 0.99),
        Goal(f"labelling in {way}, demo's narrow model", "infer", (f"cases.micro.ways.{way}.speedup",), 1.2),
        Goal(f"labelling in {way}, CamVid's narrow model", "infer", (f"cases.tiny.ways.{way}.speedup",), 1.2),
    )


def _trained(profile: str) -> tuple[Goal, ...]:
    """bf16 beside fp32 with a workspace's trained teacher."""
    name, what = f"agreement-{profile}", f"bf16 with the teacher of profile {profile}"
    return (
        Goal(f"{what}: equal thresholded labels", name, ("thresholded_labels",), 0.995),
        Goal("... codes within five steps", name, ("codes_within_5",), 0.99),
    )


CPU_CASES = ("hrnet_tiny:128x192:4", "hrnet_w18:256x512:1", "hrnet_w48:256x512:1")  # of bench_train_step.py
_LABEL = "`autolabel label`"
_SIZES = ("19 classes, 512x1024", "19 classes, 1024x2048", "65 classes, 1024x1856")

GOALS = (
    *(goal for way in ("fp32", "bf16") for goal in _labelling(way)),
    *_trained("camvid"),
    *_trained("demo"),
    *(Goal(f"scoring an image, {s}, against the plain way", "evaluate", (f"{s}.speedup",), 2.0) for s in _SIZES),
    Goal(f"{_LABEL}: share of its time in the model, 512x1024", "labelling", ("area.512x1024.model_share",), 0.9),
    Goal(f"{_LABEL}: memory, 5,000 images over 50, MB", "labelling", ("memory_growth_mb",), 100, at_least=False),
    *(
        Goal(
            f"training step, hierarchical over single, {case}",
            "train_step",
            (f"cases.{case}.ratio.median",),
            1.4,
            at_least=False,
        )
        for case in CPU_CASES
    ),
    Goal("RMI forward + backward, against the plain formula", "rmi", ("plain_over_ours.best",), 6.0),
    Goal("RMI: extra peak memory, share of the plain formula's", "rmi", ("memory_share",), 1 / 3, at_least=False),
    Goal("RMI over binary cross-entropy", "rmi", ("ours_over_bce.best",), 2.0, at_least=False),
    Goal("loader, images a second of one core, against Pillow + numpy", "loader", ("ratio.median",), 2.0),
    Goal("label bytes over two Pillow PNGs", "store", ("generated.over_pillow",), 1.05, at_least=False),
    Goal("encoding labels of 1024x2048 a second, one core", "store", ("generated.encode_per_s",), 8),
    Goal("reading and thresholding them", "store", ("generated.read_threshold_per_s",), 25),
    Goal("a new threshold over 20,000 images, seconds", "store", ("statistics.warm_s",), 1.0, at_least=False),
)


def table(figures: Mapping[str, Mapping[str, float]], goals: tuple[Goal, ...] = GOALS) -> list[str]:
    """Markdown rows: goal, bound, figure, whether it is met; what was not measured says so."""
    lines = ["| goal | bound | measured | met |", "|---|---|---|---|"]
    for goal in goals:
        value = goal.value(figures)
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:.3g}"
        measured = "-" if value is None else f"{value:.3g}"
        met = "not measured" if value is None else "yes" if goal.is_met(value) else "**no**"
        lines.append(f"| {goal.what} ({goal.result}) | {bound} | {measured} | {met} |")
    return lines
