"""What answers about regions cost and bring: minutes, pixels, the share of right labels, and what 100 more would bring.

A region whose label is right counts as right as a whole: wrong pixels along its borders are not seen. Every pixel was
drawn with a known probability, so answers are weighted by its inverse, whatever they were aimed at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from scipy.special import stdtrit

from hmsa_core.labels.thresholds.intervals import clopper_pearson
from pipeline.review.questions import MIXED, UNSURE, Questions
from pipeline.review.view import StoreView

Interval = tuple[float, float, float]  # value, low, high (95 %)
_PAUSE = 60.0  # seconds between two answers; longer is a pause
_STEPS = (25, 50, 100, 250, 500, 1000, 3000, 10_000)  # answers at which the price is shown
_LAST = 25  # answers whose row is shown by itself
_NEXT = 100  # answers of the forecast, from as many last ones
_FEW = 20  # answers below which nothing is forecast
_ALIKE = 100  # answers from which a light head is worth a try
_DONE = 0.99  # share of right labels at which one may stop
_MAP_MINUTES = 60.0  # a label map drawn by hand: 20 minutes on CamVid (Brostow 2009), 90 on Cityscapes (Cordts 2016)
_FASTEST, _USUAL = 0.5, 3.0  # seconds an answer: faster is no person, then the usual time is assumed


def price(questions: Questions, view: StoreView) -> dict[str, Any]:
    """What the answers so far cost and brought, and whether more are worth it.

    Returns:
        price: a row after 25, 50, 100, ... and all answers: minutes (a pause counts as one), labelled, corrected
            (were wrong) and ignored pixels, and "before" and "after" corrections the share of right labels among all
            pixels of the store as (value, low, high). Mixed regions count as wrong; "can't tell" is left out.
        last: such a row of the last 25 answers, without the shares.
        next: the forecast for 100 more: "points" of right labels (value, low, high), "minutes", "seconds" an answer,
            "map_points" that a map drawn by hand brings in these minutes; None with fewer than 20 answers.
        words: whether to go on, one sentence.
    """
    done = [n for n, item in enumerate(questions.items) if item["verdict"]]
    done.sort(key=lambda n: questions.items[n]["when"])
    total, images = int(view.predicted.sum()), len(view.names)
    counts = sorted({n for n in _STEPS if n < len(done)} | {len(done)})
    rows = [_row([questions.items[n] for n in done[:count]], total) for count in counts]
    ahead = _forecast([questions.items[n] for n in done[-_NEXT:]], rows[-1]["after"], total, images)
    last = _brought([questions.items[n] for n in done[-_LAST:]])
    return {"price": rows, "last": last, "next": ahead, "words": _words(rows[-1]["after"], ahead, len(done))}


def _row(items: Sequence[dict[str, Any]], total: int) -> dict[str, Any]:
    row = _brought(items)
    before = weighted_share(
        [(1 / item["share"], item["verdict"] == "right") for item in items if item["verdict"] != UNSURE]
    )
    left = total - row["ignored"]
    # What was corrected is known, not estimated: it moves the interval as a whole.
    after = [min(1.0, (share * total + row["corrected"]) / left) for share in before] if left else list(before)
    return {**row, "before": [round(v, 5) for v in before], "after": [round(v, 5) for v in after]}


def _brought(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pixels = {"labelled": 0, "corrected": 0, "ignored": 0}
    for item in items:
        if item["answer"] == MIXED:
            pixels["ignored"] += item["pixels"]
        elif item["answer"] != UNSURE:
            pixels["labelled"] += item["pixels"]
            pixels["corrected"] += _corrected(item)
    return {"answers": len(items), "minutes": round(sum(_seconds(items)) / 60, 1), **pixels}


def _corrected(item: dict[str, Any]) -> int:
    """Pixels that an answer made right."""
    return int(item["pixels"]) if item["verdict"] == "wrong" and item["answer"] != MIXED else 0


def _seconds(items: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds from each answer of a person to the next one of the same person."""
    found: list[float] = []
    before: dict[str, datetime] = {}
    for item in items:
        who, when = item.get("who", ""), datetime.fromisoformat(item["when"])
        if who in before:
            found.append(min((when - before[who]).total_seconds(), _PAUSE))
        before[who] = when
    return found


def weighted_share(draws: Sequence[tuple[float, bool]], confidence: float = 0.95) -> Interval:
    """Share of right pixels from independent draws, each weighted by the inverse of its probability.

    The interval is that of `stratified`: an effective number of answers (Korn and Graubard 1998) in the formula of
    Clopper and Pearson; one right and one wrong draw of mean weight are added for the design effect.
    """
    if not draws:
        return 0.0, 0.0, 1.0
    weight, right = (np.array(column, np.float64) for column in zip(*draws, strict=True))
    weight /= weight.mean()
    n = len(draws)
    value, middle = float(weight @ right) / n, (float(weight @ right) + 1) / (n + 2)
    spread = float(weight**2 @ (right - middle) ** 2 + middle**2 + (1 - middle) ** 2) / (n + 2) ** 2
    effective = min(float(n), middle * (1 - middle) / spread)
    return value, *clopper_pearson(value * effective, effective, confidence)


def _forecast(last: Sequence[dict[str, Any]], after: Sequence[float], total: int, images: int) -> dict[str, Any] | None:
    """What as many answers as the last ones will bring, if they go on like these."""
    if len(last) < _FEW:
        return None
    gains = np.array([_corrected(item) for item in last], np.float64)
    # One more correction of mean size, so that answers without any do not forecast nothing for certain.
    careful = [*gains, float(np.mean([item["pixels"] for item in last]))]
    error = float(np.std(careful, ddof=1)) * math.sqrt(_NEXT + _NEXT**2 / len(last))
    width, value = float(stdtrit(len(last) - 1, 0.975)) * error, _NEXT * float(gains.mean())
    seconds = float(np.mean(_seconds(last) or [_USUAL]))
    seconds = seconds if seconds >= _FASTEST else _USUAL
    minutes = _NEXT * seconds / 60
    points = [round(100 * max(0.0, pixels) / total, 4) for pixels in (value, value - width, value + width)]
    by_map = 100 * (1 - after[0]) / images * minutes / _MAP_MINUTES
    return {
        "points": points,
        "minutes": round(minutes, 1),
        "seconds": round(seconds, 1),
        "map_points": round(by_map, 4),
    }


def _words(after: Sequence[float], ahead: dict[str, Any] | None, answers: int) -> str:
    if ahead is None:
        return f"too few answers for a forecast: {answers} of {_FEW}"
    value, low, high = ahead["points"]
    said = f"{_NEXT} more answers ({ahead['minutes']:g} min at {ahead['seconds']:g} s each) would correct "
    said += f"{value:.2f} % of the labels [{low:.2f}, {high:.2f}]"
    by_map = (
        f"drawing maps by hand ({_MAP_MINUTES:.0f} min an image) would correct {ahead['map_points']:.2f} % in this time"
    )
    if after[1] >= _DONE:
        return f"{said}; stop: {after[1]:.1%} are right at least"
    if high < ahead["map_points"]:
        said = f"{said}; stop: {by_map}"
    else:
        said = f"{said}; {'go on' if low > ahead['map_points'] else 'no clear difference'}: {by_map}"
    # On CamVid all that a student gained came from these.
    return said if answers < _ALIKE else f"{said}; `autolabel ask STORE --alike` may correct many regions like these"
