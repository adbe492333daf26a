"""What gain to expect of auto-labels before a night is spent, and which classes people should label instead.

The evidence is too thin for a formula: some dozen comparisons on two scenes. So advice names the measured comparisons
that are most like the workspace, with their intervals, and says how many there are and where they end
(`gains.json`, written by `python -m research.results`). Which classes lack labels is read off the calibration images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Literal

from pipeline.render import Share, Table, points

GAINS = "gains.json"
_NEAREST = 3
_FAR = 2.0  # a distance beyond which nothing is called alike
_TEACHER, _KEPT, _DOUBLINGS = 0.1, 0.25, 2.0  # differences that count as 1: mean IoU, share of pixels, log2 of a ratio
_CLASSES = 5

Verdict = Literal["gain", "loss", "open", "unknown"]


@dataclass(frozen=True)
class Case:
    """One measured comparison: a student with auto-labels against the same student without them.

    Shares and differences of mean IoU are in [0, 1]. `beside`: both students had human polygons of the same images.
    """

    scene: str
    labels: str  # threshold or policy
    beside: bool
    teacher: float  # mean IoU
    fine: int  # images with fine labels
    unlabelled: int
    kept: float | None  # share of pixels with an auto-label; None beside polygons
    gain: float
    low: float
    high: float
    seeds: int
    ceiling: float | None  # the gain of true labels of the same images, where that was measured
    table: str
    commit: str


@dataclass(frozen=True)
class ClassFacts:
    """One class. `fine_share` of the fine pixels; the teacher's figures are of calibration images, None = not there."""

    name: str
    fine_share: float
    iou: float | None
    precision: float | None  # of what is kept
    shown: float | None  # share of its true pixels that is kept and right


@dataclass(frozen=True)
class Situation:
    """A workspace, as far as advice depends on it."""

    labels: str
    beside: bool
    teacher: float  # mean IoU on the calibration images
    fine: int
    unlabelled: int
    kept: float
    right: float | None  # share of the kept pixels
    images: int  # calibration images
    classes: tuple[ClassFacts, ...]
    measured: tuple[float, float | None, float | None] | None = None  # student - control of the last night


@dataclass(frozen=True)
class Collect:
    """A class that people should label. `bound`: what mean IoU would gain if the class became perfect."""

    facts: ClassFacts
    bound: float


@dataclass(frozen=True)
class Advice:
    """What to expect, on which evidence."""

    situation: Situation
    verdict: Verdict
    sentence: str
    nearest: tuple[Case, ...]
    evidence: int  # comparisons of this kind
    limits: tuple[str, ...]
    collect: tuple[Collect, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def measured_cases() -> tuple[Case, ...]:
    """The comparisons that this version was shipped with."""
    text = resources.files("pipeline").joinpath(GAINS).read_text("utf-8")
    return tuple(Case(**row) for row in json.loads(text)["cases"])


def advise(situation: Situation, cases: Sequence[Case]) -> Advice:
    """Compare a workspace with what was measured."""
    alike = [case for case in cases if case.beside == situation.beside]
    ordered = sorted(alike, key=lambda case: (distance(situation, case), case.table, case.labels))
    near = tuple(case for case in ordered[:_NEAREST] if distance(situation, case) <= _FAR)
    verdict = _verdict(near)
    collect = _collect(situation.classes)
    sentence = _sentence(situation, verdict, near, len(alike))
    if collect and verdict != "gain":
        sentence += f" Labels of {_and([one.facts.name for one in collect[:3]])} by people are the surer way."
    return Advice(situation, verdict, sentence, near, len(alike), tuple(_limits(situation, alike)), collect)


def distance(situation: Situation, case: Case) -> float:
    """How unlike a case is: teacher, images for each fine one, and the share of pixels that is kept."""
    mine, theirs = (math.log2(max(1, of.unlabelled) / max(1, of.fine)) for of in (situation, case))
    parts = [(situation.teacher - case.teacher) / _TEACHER, (mine - theirs) / _DOUBLINGS]
    if case.kept is not None:
        parts.append((situation.kept - case.kept) / _KEPT)
    return math.hypot(*parts)


def _verdict(near: Sequence[Case]) -> Verdict:
    if not near:
        return "unknown"
    if min(case.seeds for case in near) < 2:  # such an interval covers the images alone
        return "open"
    if all(case.low > 0 for case in near):
        return "gain"
    return "loss" if all(case.high < 0 for case in near) else "open"


def _sentence(situation: Situation, verdict: Verdict, near: Sequence[Case], evidence: int) -> str:
    kind = "beside human polygons" if situation.beside else "alone"
    if verdict == "unknown":
        return f"Nobody knows what auto-labels {kind} bring here: none of {evidence} measured comparisons is like it."
    ends = f"{points(min(c.low for c in near), sign='+')} to {points(max(c.high for c in near), sign='+')}"
    told = f"the {len(near)} most alike of {evidence} measured comparisons say {ends} points of mean IoU"
    return {
        "gain": f"Auto-labels {kind} should help: {told}.",
        "loss": f"Auto-labels {kind} should not help: {told}.",
        "open": f"No gain of auto-labels {kind} can be promised: {told}.",
    }[verdict]


def _limits(situation: Situation, alike: Sequence[Case]) -> list[str]:
    """What the evidence does not cover."""
    scenes = len({case.scene for case in alike})
    limits = [
        f"The evidence is {len(alike)} comparisons on {scenes} scenes; intervals do not cover how scenes differ.",
        "Teachers are compared by mean IoU: here on calibration images, in the comparisons on report images.",
    ]
    for text, mine, theirs, scale in (
        ("points of the teacher", situation.teacher, [case.teacher for case in alike], 100),
        ("images with fine labels", situation.fine, [case.fine for case in alike], 1),
        ("unlabelled images", situation.unlabelled, [case.unlabelled for case in alike], 1),
    ):
        if theirs and not min(theirs) <= mine <= max(theirs):
            ends = f"{scale * min(theirs):.0f} to {scale * max(theirs):.0f}"
            limits.append(f"{scale * mine:.0f} {text}: outside of what was measured ({ends}).")
    if not any(case.ceiling is not None for case in alike):
        limits.append("What true labels of the unlabelled images would bring (the most possible) is not known.")
    return limits


def _collect(classes: Sequence[ClassFacts]) -> tuple[Collect, ...]:
    """Classes that lose most mean IoU and that auto-labels show least, the first one worth most."""
    judged = [one for one in classes if one.iou is not None]
    found = [Collect(one, (1.0 - (one.iou or 0.0)) / len(judged)) for one in judged]
    found.sort(key=lambda one: (-one.bound * (1.0 - (one.facts.shown or 0.0)), one.facts.fine_share))
    return tuple(found[:_CLASSES])


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# -- tables, for the terminal and the report ---------------------------------------------------------


def facts_line(situation: Situation) -> str:
    """What the advice is about."""
    kept, right = Share(situation.kept), Share(situation.right)
    return (
        f"{situation.fine} images with fine labels, {situation.unlabelled} unlabelled ones; the teacher makes "
        f"{points(situation.teacher)} points on {situation.images} calibration images; threshold {situation.labels} "
        f"keeps {kept} % of the pixels there, {right} % of them right."
    )


def measured_line(situation: Situation) -> str:
    """The last night's own comparison, "" before there was one."""
    if situation.measured is None:
        return ""
    value, low, high = situation.measured
    polygons = ", human polygons included" if situation.beside else ""
    ends = Share(value, low, high, 1, "+").interval
    return f"Measured in this workspace (student − control{polygons}): {points(value, sign='+')} [{ends}]."


def nearest_table(advice: Advice) -> Table:
    """The comparisons that are most alike."""
    head = ["measured on", "labels", "teacher", "fine", "unlabelled", "kept %", "gain", "95 % interval", "seeds"]
    rows: list[list[object]] = []
    for case in advice.nearest:
        ends = Share(case.gain, case.low, case.high, 1, "+")
        counts = [Share(case.teacher), case.fine, case.unlabelled, Share(case.kept)]
        rows.append([case.scene, case.labels, *counts, points(case.gain, sign="+"), ends.interval, case.seeds])
    return Table(head, rows)


def collect_table(advice: Advice) -> Table:
    """Classes that people should label, with what a perfect class would add to mean IoU."""
    head = ["class", "share of fine pixels %", "IoU", "precision of what is kept", "shown rightly %", "at most, points"]
    rows: list[list[object]] = []
    for one in advice.collect:
        facts = one.facts
        figures = [Share(facts.iou), Share(facts.precision), Share(facts.shown)]
        rows.append([facts.name, Share(facts.fine_share, digits=2), *figures, points(one.bound, sign="+")])
    return Table(head, rows)


def as_text(advice: Advice) -> str:
    """For the terminal."""
    lines = [facts_line(advice.situation), measured_line(advice.situation), "", advice.sentence, ""]
    parts = ["\n".join(line for i, line in enumerate(lines) if line or i != 1)]
    if advice.nearest:
        parts.append(nearest_table(advice).text())
    if advice.collect:
        parts.append(f"Classes to label by hand, first what may bring most\n{collect_table(advice).text()}")
    return "\n".join([*parts, *(f"- {limit}" for limit in advice.limits)]) + "\n"
