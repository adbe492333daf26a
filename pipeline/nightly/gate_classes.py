"""The gate's verdict on each class: may it have lost more than its allowance, and can these images tell?

Alpha is whole for each candidate here: a smaller share for later looks would make the guard blind, not strict,
since a class that is too noisy for its level cannot be judged. Errors are those of blocks that show the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError
from hmsa_core.metrics.student_t import t_cdf, t_quantile
from pipeline.counts import finite
from pipeline.nightly.gate_config import GateConfig
from pipeline.nightly.gate_scores import Scores

__all__ = ["class_note", "class_rows"]

_LARGE = 3.0  # allowances: a loss of more than these stops a promotion already when it is significant alone


def class_rows(new: Scores, old: Scores, classes: Sequence[str], config: GateConfig) -> list[dict[str, Any]]:
    """The verdict on each class: "non-inferior", "inferior", "veto", or "not judged" and why.

    Args:
        new, old: the candidate and the incumbent on the same draws of blocks.
        classes: class names, index = trainId.
        config: allowances, veto classes and alpha, one-sided for all classes together.

    Raises:
        ConfigError: an allowance is given for a class that is not there.
    """
    _check_names(config, classes)
    veto = {name.lower() for name in config.veto_recall}
    rows = [_class_row(new, old, c, name, config) for c, name in enumerate(classes)]
    judged = _leave_out_noisy([row for row in rows if row["verdict"] == "judged"], config.alpha)
    shown = _holm([row["p"] for row in judged], config.alpha)
    for row, is_shown in zip(judged, shown, strict=True):
        row["verdict"] = "non-inferior" if is_shown else "inferior"
        if not is_shown:
            row["why"] = (
                f"a loss of {100 * row['allowance']:.1f} points cannot be ruled out (measured {100 * row['gain']:+.2f})"
            )
    for c, row in enumerate(rows):
        _significant_loss(row, config.alpha, len(rows))
        if row["name"].lower() in veto:
            _recall_veto(row, new.recall[c] - old.recall[c], new.recall_draws[:, c] - old.recall_draws[:, c], config)
    return rows


def class_note(rows: Sequence[dict[str, Any]]) -> str:
    """A line on what was measured of classes that could not be judged, or "" where none lost over its allowance."""
    there = [row for row in rows if row["gain"] is not None]
    blind = [row for row in there if row["verdict"] == "not judged"]
    worst = min(blind, key=lambda row: float(row["gain"]), default=None)
    if worst is None or worst["gain"] >= -worst["allowance"]:
        return ""
    return (
        f"{len(blind)} of {len(there)} classes could not be judged; the most that one of them lost: "
        f"{worst['name']} {100 * worst['gain']:+.1f} points, which may be chance"
    )


def _holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of the hypotheses fall (Holm 1979): the smallest p at alpha / m, the next at alpha / (m - 1), ..."""
    falls = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > alpha / (len(p_values) - rank):
            break  # and stops all later ones
        falls[i] = True
    return falls


def _leave_out_noisy(rows: list[dict[str, Any]], alpha: float) -> list[dict[str, Any]]:
    """The rows whose noise lets a perfect tie be shown at the levels they are judged at, or no tie could ever pass."""
    ties = sorted(((_p_of_a_loss(row, 0.0), row) for row in rows), key=lambda tie: tie[0])
    while ties and not all(_holm([p for p, _ in ties], alpha)):
        _, row = ties.pop()
        row["verdict"] = "not judged"
        row["why"] = (
            f"noise of {100 * row['se']:.1f} points is too wide for an allowance of {100 * row['allowance']:.1f}"
        )
    return [row for _, row in ties]


def _p_of_a_loss(row: dict[str, Any], gain: float) -> float:
    """One-sided p of "the loss is at least the allowance" (Student's t), had the gain been this."""
    allowance, se = row["allowance"], row["se"]
    return float(t_cdf(-(gain + allowance) / se, row["blocks"] - 1.0)) if se else float(gain < -allowance)


def _check_names(config: GateConfig, classes: Sequence[str]) -> None:
    unknown = sorted({k.lower() for k in config.class_allowances} - {name.lower() for name in classes})
    if unknown:
        raise ConfigError(
            f"gate.class_allowances: no class is called {unknown[0]!r}", hint=f"the classes are: {', '.join(classes)}"
        )


def _class_row(new: Scores, old: Scores, c: int, name: str, config: GateConfig) -> dict[str, Any]:
    allowance = {k.lower(): v for k, v in config.class_allowances.items()}.get(name.lower(), config.class_allowance)
    difference = new.iou_draws[:, c] - old.iou_draws[:, c]
    difference = difference[np.isfinite(difference)]
    gain = float(new.iou[c] - old.iou[c])
    row: dict[str, Any] = {
        "name": name,
        "candidate": finite(new.iou[c]),
        "incumbent": finite(old.iou[c]),
        "gain": finite(gain),
        "allowance": allowance,
        "blocks": int(old.blocks_with[c]),
        "se": None,
        "p": None,
        "verdict": "not judged",
        "why": "",
    }
    se = _standard_error(difference, row["blocks"]) if len(difference) >= 2 else 0.0
    row["se"] = se or None  # also where it is not judged: a loss that chance does not explain counts all the same
    if old.blocks_with[c] < config.min_blocks or len(difference) < 2 or not np.isfinite(gain):
        row["why"] = f"in {row['blocks']} blocks only, {config.min_blocks} are needed"
        return row
    row["p"] = _p_of_a_loss(row, gain)
    row["verdict"] = "judged"
    return row


def _standard_error(draws: NDArray[np.float64], blocks: int) -> float:
    """Of draws of n blocks out of n, which shrinks the variance by (n - 1) / n."""
    return float(np.std(draws, ddof=1) * np.sqrt(blocks / max(1, blocks - 1)))


def _significant_loss(row: dict[str, Any], alpha: float, classes: int) -> None:
    """A class that cannot be judged stops a promotion by a loss that chance does not explain."""
    if row["verdict"] != "not judged" or not row["se"] or row["gain"] is None or row["blocks"] < 2:
        return
    is_large = row["gain"] < -_LARGE * row["allowance"]
    level = alpha if is_large else alpha / classes
    t = float(t_quantile(1 - level, row["blocks"] - 1.0))  # few blocks know their own spread badly
    if row["gain"] + t * row["se"] < 0:
        row["verdict"] = "inferior"
        row["why"] = f"lost {-100 * row['gain']:.2f} points, more than chance explains"


def _recall_veto(row: dict[str, Any], change: float, draws: NDArray[np.float64], config: GateConfig) -> None:
    draws = draws[np.isfinite(draws)]
    row["recall_change"] = finite(change)
    if len(draws) < 2 or not np.isfinite(change):
        return
    se = _standard_error(draws, row["blocks"])
    is_lower = row["blocks"] >= 2 and change + float(t_quantile(1 - config.alpha, row["blocks"] - 1.0)) * se < 0
    if change < -config.recall_allowance or is_lower:
        row["verdict"] = "veto"
        row["why"] = f"recall changed by {100 * change:+.2f} points: a veto class"
