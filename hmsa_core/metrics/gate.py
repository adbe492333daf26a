"""The gate: decide with measured certainty whether a candidate is promoted to teacher. The rules: docs/nightly.md.

Both models are scored on the same bootstrap draws of blocks (a drive, a city). The bound of the mean gain includes the
variance of the draws and the variance between trainings of one recipe (A/A trainings). Student's t with
Welch-Satterthwaite's degrees of freedom allows for a spread estimated from few trainings; the normal quantile would
promote chance three times too often. The k-th look at a report set spends alpha / (k (k + 1)) of the mean gain's alpha.
The guards of the classes use all of alpha for each candidate: at a smaller level a noisy class could not be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from hmsa_core.config import GateConfig
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.metrics import finite, holm, iou_of, mean_iou_of
from hmsa_core.metrics.bootstrap import Draws, block_sums
from hmsa_core.metrics.confusion import ratio

_MANY = 1e6  # degrees of freedom at which t equals the normal distribution
CHAMPION_ALLOWANCE = 0.01  # mean IoU below the pinned reference champion
_LARGE = 3.0  # allowances: for a larger loss, significance at alpha (not alpha / classes) stops a promotion


@dataclass(frozen=True)
class Judged:
    """One model's counts on the report images: the images, their blocks (units of resampling), and confusions."""

    name: str
    images: tuple[str, ...]
    blocks: tuple[str, ...]
    confusions: NDArray[np.int64]  # (N, C, C), rows = truth; a column more counts pixels without a label

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU by class, NaN where a class is not scored."""
        return iou_of(self.confusions.sum(axis=0))


@dataclass(frozen=True)
class _Scores:
    """IoU and recall of a model on all images and on each draw."""

    iou: NDArray[np.float64]  # (C,)
    iou_draws: NDArray[np.float64]  # (draws, C)
    recall: NDArray[np.float64]
    recall_draws: NDArray[np.float64]
    blocks_with: NDArray[np.int64]  # (C,) blocks whose truth shows the class

    @classmethod
    def of(cls, judged: Judged, plan: Draws) -> _Scores:
        """Score a model on draws that all models have."""
        sums = block_sums(judged.confusions, plan.inverse[0], plan.blocks)
        whole, drawn = sums.sum(0), np.tensordot(plan.weights[0], sums, axes=1)
        return cls(
            iou=ratio(whole[0], whole[1]),
            iou_draws=ratio(drawn[:, 0], drawn[:, 1]),
            recall=ratio(whole[0], whole[2]),
            recall_draws=ratio(drawn[:, 0], drawn[:, 2]),
            blocks_with=(sums[:, 2] > 0).sum(0),
        )

    def gain_over(self, other: _Scores) -> tuple[float, NDArray[np.float64]]:
        """Difference of mean IoU, of all data and of each draw, over the classes that both have an IoU for.

        A class that no truth shows has no IoU for a model that never predicts the class, and IoU 0 for one that does.
        """
        return mean_iou_of(self.iou - other.iou), np.nan_to_num(mean_iou_of(self.iou_draws - other.iou_draws))


def alpha_of_look(alpha: float, look: int) -> float:
    """Share of alpha for the `look`-th look (1, 2, ...): alpha / (k (k + 1)); all looks together spend alpha."""
    return alpha / (look * (look + 1))


def judge(
    candidate: Judged,
    incumbent: Judged,
    classes: Sequence[str],
    config: GateConfig,
    *,
    looks: int = 1,
    champion: Judged | None = None,
    aa_mean_iou: Sequence[float] | None = None,
    unknown: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a candidate with the incumbent; return the verdict as JSON (see the module's text).

    Args:
        candidate, incumbent, champion: results on the same images in the same order.
        classes: class names, index = trainId.
        config: thresholds and allowances.
        looks: number of this look at the report set (1 = the first).
        aa_mean_iou: mean IoU of A/A trainings (same recipe, other seeds) on the same images; None = not used.
        unknown: descriptions of training data of the candidate that cannot be traced.
        seed: seed of the bootstrap draws.

    Returns:
        {"promote": bool, "sentence": str, "reasons": [...], "gain": {...}, "classes": [...], ...}.

    Raises:
        InputError: results belong to different images.
    """
    for other in (incumbent, champion or incumbent):
        if other.images != candidate.images:
            raise InputError(
                f"gate: {candidate.name} and {other.name} were judged on different images "
                f"({len(candidate.images)} and {len(other.images)})",
                hint="evaluate both on the same selection",
            )
    alpha = alpha_of_look(config.alpha, looks)
    plan = Draws([np.asarray(candidate.blocks, str)], config.draws, seed)
    new, old = _Scores.of(candidate, plan), _Scores.of(incumbent, plan)
    mean = _mean_gain(new, old, config, aa_mean_iou, alpha, plan.blocks)
    rows = _class_rows(new, old, classes, config)
    champion_row = None if champion is None else _champion(new, champion, plan, alpha)
    reasons = _reasons(mean, rows, champion_row, plan.blocks, unknown, config)
    verdict = {
        "promote": not reasons,
        "reasons": reasons,
        "gain": mean,
        "classes": rows,
        "champion": champion_row,
        "look": looks,
        "alpha": alpha,
        "alpha_total": config.alpha,
        "blocks": plan.blocks,
        "images": len(candidate.images),
        "unknown_lineage": list(unknown),
        "candidate": candidate.name,
        "incumbent": incumbent.name,
        "notes": _notes(rows, config),
    }
    verdict["sentence"] = _sentence(verdict, config)
    return verdict


def _reasons(
    mean: dict[str, Any],
    rows: list[dict[str, Any]],
    champion: dict[str, Any] | None,
    blocks: int,
    unknown: Sequence[str],
    config: GateConfig,
) -> list[str]:
    """Return all reasons against a promotion."""
    found = []
    if blocks < config.min_blocks:
        found.append(f"the report set has {blocks} blocks, {config.min_blocks} are needed for an interval")
    if mean["seed_sd"] is None:
        found.append(
            "the spread between trainings is not judged here, but by a night's gate (after autolabel models aa)"
            if mean["aa_runs"] is None
            else f"seed variance is unknown: {mean['aa_runs']} of {config.min_aa_runs} A/A trainings are there "
            "(make them: autolabel models aa)"
        )
    if not mean["low"] > config.min_gain:
        found.append(
            f"the gain {100 * mean['value']:+.2f} points has its lower bound at {100 * mean['low']:+.2f}, "
            f"not above {100 * config.min_gain:+.2f}"
        )
    found += [f"{row['name']}: {row['why']}" for row in rows if row["verdict"] in ("inferior", "veto")]
    if champion and champion["loss"] > CHAMPION_ALLOWANCE:
        found.append(
            f"{100 * champion['loss']:.2f} points below the reference champion {champion['name']} "
            "(another one: autolabel models pin VERSION)"
        )
    if not config.enabled:
        found.append("promotion is switched off (evaluate.gate.enabled)")
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        found.append(f"that the candidate never saw the report images is not proven: {unknown[0]}{more}")
    return found


def _mean_gain(
    new: _Scores, old: _Scores, config: GateConfig, aa_mean_iou: Sequence[float] | None, alpha: float, blocks: int
) -> dict[str, Any]:
    """The gain in mean IoU with its bounds, and the smallest gain that this set could detect."""
    seed_sd, known, runs = config.seed_sd, config.seed_sd is not None, aa_mean_iou or ()
    if not known and len(runs) >= config.min_aa_runs:
        seed_sd = float(np.std(runs, ddof=1))
    gain, draws = new.gain_over(old)
    boot = _standard_error(draws, blocks) ** 2
    # Candidate and incumbent are one training each: their difference carries the seed variance twice.
    seed = 2.0 * (seed_sd or 0.0) ** 2
    se = float(np.sqrt(boot + seed))
    uncertain = boot**2 / max(1, blocks - 1) + (0.0 if known or not seed else seed**2 / (len(runs) - 1))
    freedom = (boot + seed) ** 2 / uncertain if uncertain > 0 else _MANY
    t = _quantile(min(freedom, _MANY), alpha)
    return {
        "value": gain,
        "low": gain - t * se,
        "high": gain + t * se,
        "standard_error": se,
        "bootstrap_se": boot**0.5,
        "seed_sd": seed_sd,
        "aa_runs": None if aa_mean_iou is None else len(runs),
        "freedom": freedom,
        "smallest_detectable": (t + NormalDist().inv_cdf(config.power)) * se,
        "candidate": float(np.nanmean(new.iou)),
        "incumbent": float(np.nanmean(old.iou)),
    }


def _champion(new: _Scores, champion: Judged, plan: Draws, alpha: float) -> dict[str, Any]:
    best = _Scores.of(champion, plan)
    loss, draws = best.gain_over(new)
    se = _standard_error(draws, plan.blocks)
    t = _quantile(plan.blocks - 1, alpha)
    return {
        "name": champion.name,
        "mean_iou": float(np.nanmean(best.iou)),
        "loss": loss,
        "low": loss - t * se,
        "high": loss + t * se,
        "allowance": CHAMPION_ALLOWANCE,
    }


def _sentence(verdict: dict[str, Any], config: GateConfig) -> str:
    gain = verdict["gain"]
    measured = f"of {gain['aa_runs']} A/A trainings" if config.seed_sd is None else "as set (evaluate.gate.seed_sd)"
    seeds = f", spread {measured}" if gain["seed_sd"] else ""
    return (
        f"{'Promote' if verdict['promote'] else 'Keep the incumbent'}: "
        f"{verdict['candidate']} {100 * gain['value']:+.2f} points against {verdict['incumbent']} "
        f"[{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}] "
        f"(bounds at alpha {verdict['alpha']:.3g} for look {verdict['look']}{seeds}); the smallest gain this set "
        f"could have shown is {100 * gain['smallest_detectable']:.2f}."
    )


# -- class by class --------------------------------------------------------------------------------


def _class_rows(new: _Scores, old: _Scores, classes: Sequence[str], config: GateConfig) -> list[dict[str, Any]]:
    """Return the verdict on each class: "non-inferior", "inferior", "veto", or "not judged" with the reason."""
    for key, names in (("class_allowances", config.class_allowances), ("veto_recall", config.named_veto)):
        unknown = sorted({k.lower() for k in names} - {name.lower() for name in classes})
        if unknown:
            raise ConfigError(
                f"evaluate.gate.{key}: no class is called {unknown[0]!r}", hint=f"the classes are: {', '.join(classes)}"
            )
    veto = {name.lower() for name in config.veto_recall}
    rows = [_class_row(new, old, c, name, config) for c, name in enumerate(classes)]
    judged = _leave_out_noisy([row for row in rows if row["verdict"] == "judged"], config.alpha)
    shown = holm([row["p"] for row in judged], config.alpha)
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


def _notes(rows: Sequence[dict[str, Any]], config: GateConfig) -> list[str]:
    """Return notes on weak guards: a veto without a class, and the worst class that could not be judged."""
    notes = []
    if config.veto_recall and not {r["name"].lower() for r in rows} & {name.lower() for name in config.veto_recall}:
        notes.append(
            f"no class is called {' or '.join(config.veto_recall)}: nobody's recall is protected by a veto "
            "(evaluate.gate.veto_recall)"
        )
    there = [row for row in rows if row["gain"] is not None]
    blind = [row for row in there if row["verdict"] == "not judged"]
    worst = min(blind, key=lambda row: float(row["gain"]), default=None)
    if worst is not None and worst["gain"] < -worst["allowance"]:
        notes.append(
            f"{len(blind)} of {len(there)} classes could not be judged; the most that one of them lost: "
            f"{worst['name']} {100 * worst['gain']:+.1f} points, which may be chance"
        )
    return notes


def _leave_out_noisy(rows: list[dict[str, Any]], alpha: float) -> list[dict[str, Any]]:
    """Return the rows whose noise is small enough that a perfect tie would pass at their levels."""
    ties = sorted(((_p_of_a_loss(row, 0.0), row) for row in rows), key=lambda tie: tie[0])
    while ties and not all(holm([p for p, _ in ties], alpha)):
        _, row = ties.pop()
        row["verdict"] = "not judged"
        row["why"] = (
            f"noise of {100 * row['se']:.1f} points is too wide for an allowance of {100 * row['allowance']:.1f}"
        )
    return [row for _, row in ties]


def _p_of_a_loss(row: dict[str, Any], gain: float) -> float:
    """One-sided p of "the loss is at least the allowance" (Student's t) for a given gain."""
    allowance, se = row["allowance"], row["se"]
    return float(stdtr(row["blocks"] - 1.0, -(gain + allowance) / se)) if se else float(gain < -allowance)


def _class_row(new: _Scores, old: _Scores, c: int, name: str, config: GateConfig) -> dict[str, Any]:
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
    if len(difference) >= 2:  # also for classes that are not judged: a significant loss counts there, too
        row["se"] = _standard_error(difference, row["blocks"]) or None
    if old.blocks_with[c] < config.min_blocks or len(difference) < 2 or not np.isfinite(gain):
        row["why"] = f"in {row['blocks']} blocks only, {config.min_blocks} are needed"
        return row
    row["p"] = _p_of_a_loss(row, gain)
    row["verdict"] = "judged"
    return row


def _quantile(freedom: float, alpha: float) -> float:
    """Student's t that chance exceeds with probability alpha, since few blocks estimate their spread badly."""
    return float(stdtrit(max(1.0, freedom), 1 - alpha))


def _standard_error(draws: NDArray[np.float64], blocks: int) -> float:
    """Standard error from draws of n blocks out of n, which shrink the variance by (n - 1) / n."""
    return float(np.std(draws, ddof=1) * np.sqrt(blocks / max(1, blocks - 1)))


def _significant_loss(row: dict[str, Any], alpha: float, classes: int) -> None:
    """Mark a class that cannot be judged as "inferior" if chance does not explain its loss."""
    if row["verdict"] != "not judged" or not row["se"] or row["gain"] is None or row["blocks"] < 2:
        return
    is_large = row["gain"] < -_LARGE * row["allowance"]
    t = _quantile(row["blocks"] - 1, alpha if is_large else alpha / classes)
    if row["gain"] + t * row["se"] < 0:
        row["verdict"] = "inferior"
        row["why"] = f"lost {-100 * row['gain']:.2f} points, more than chance explains"


def _recall_veto(row: dict[str, Any], change: float, draws: NDArray[np.float64], config: GateConfig) -> None:
    draws = draws[np.isfinite(draws)]
    row["recall_change"] = finite(change)
    if len(draws) < 2 or not np.isfinite(change):
        return
    se = _standard_error(draws, row["blocks"])
    is_lower = row["blocks"] >= 2 and change + _quantile(row["blocks"] - 1, config.alpha) * se < 0
    if change < -config.recall_allowance or is_lower:
        row["verdict"] = "veto"
        row["why"] = f"recall changed by {100 * change:+.2f} points: a veto class"
