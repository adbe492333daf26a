"""The promotion gate: is the candidate good enough to teach tomorrow, and how sure can we be?

Judged on images that are in nobody's lineage, in blocks (drives, cities), paired with the incumbent:

1. Mean gain. Standard error = paired block bootstrap and, added in squares, what two trainings of the
   same recipe differ by (A/A trainings: `seed_sd`). The lower bound of the gain must exceed `min_gain`. It
   uses Student's t at Welch-Satterthwaite's degrees of freedom: three A/A trainings know their spread badly,
   and the normal quantile would promote chance three times too often (tests/unit/pipeline/nightly/test_gate.py).
2. Each class, non-inferior: the loss's upper bound stays under its allowance, Holm over the judged
   classes. A class is *not judged* when it lies in too few blocks, or when its noise is so wide that even
   a perfect tie could not be shown at those levels; a significant loss counts all the same: among all classes,
   or, if it is more than three allowances, alone (gate_classes.py).
3. Veto classes (persons, riders): a recall that is significantly lower, or lower by more than its
   allowance, stops the promotion.
4. A pinned reference champion: slow losses, each too small to see, must not add up.

Looks at the report set are counted and the mean gain's alpha is spent: the k-th look gets alpha / (k (k + 1)),
which sums to alpha over all nights. The guards (2 and 3) have all of alpha for each candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import InputError
from hmsa_core.metrics.student_t import t_quantile
from pipeline.nightly.gate_classes import class_note, class_rows
from pipeline.nightly.gate_config import GateConfig
from pipeline.nightly.gate_scores import Scores, draw_blocks, paired

__all__ = ["Judged", "alpha_of_look", "judge", "seed_sd_of"]

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Judged:
    """One model's result on the report images: int64 confusions (N, C, C), rows = truth, and their names."""

    name: str
    confusions: NDArray[np.int64]
    images: tuple[str, ...]


def alpha_of_look(alpha: float, look: int) -> float:
    """Share of alpha for the `look`-th look (1, 2, ...): alpha / (k (k + 1)); all looks together spend alpha."""
    return alpha / (look * (look + 1))


def seed_sd_of(values: Sequence[float], min_runs: int) -> float | None:
    """Standard deviation of one training's mean IoU from trainings of one recipe; None when too few."""
    if len(values) < min_runs:
        return None
    return float(np.std(np.asarray(values, np.float64), ddof=1))


def judge(
    candidate: Judged,
    incumbent: Judged,
    blocks: Sequence[str],
    classes: Sequence[str],
    config: GateConfig,
    *,
    looks: int = 1,
    champion: Judged | None = None,
    aa_mean_iou: Sequence[float] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a candidate with the incumbent; return the verdict as JSON (see the module's text).

    Args:
        candidate, incumbent, champion: results on the same images in the same order.
        blocks: unit of resampling of each image.
        classes: class names, index = trainId.
        config: thresholds and allowances.
        looks: which look at this report set this is (1 = the first).
        aa_mean_iou: mean IoU of A/A trainings (same recipe, other seeds) on the same images.
        seed: of the bootstrap draws.

    Returns:
        {"promote": bool, "sentence": str, "reasons": [...], "gain": {...}, "classes": [...], ...}.

    Raises:
        InputError: results belong to different images.
    """
    _same_images(candidate, incumbent, champion, blocks)
    alpha = alpha_of_look(config.alpha, looks)
    weights, inverse = draw_blocks(blocks, config.draws, seed)
    new, old = (Scores.of(m.confusions, inverse, weights) for m in (candidate, incumbent))

    mean = _mean_gain(new, old, config, aa_mean_iou, alpha, int(weights.shape[1]))
    rows = class_rows(new, old, classes, config)
    reasons = []
    if weights.shape[1] < config.min_blocks:
        reasons.append(f"the report set has {weights.shape[1]} blocks, {config.min_blocks} are needed for an interval")
    if mean["seed_sd"] is None:
        reasons.append(
            f"seed variance is unknown: {len(aa_mean_iou)} of {config.min_aa_runs} A/A trainings are there "
            "(make them: autolabel models aa)"
        )
    if not mean["low"] > config.min_gain:
        reasons.append(
            f"the gain {100 * mean['value']:+.2f} points has its lower bound at {100 * mean['low']:+.2f}, "
            f"not above {100 * config.min_gain:+.2f}"
        )
    reasons += [f"{row['name']}: {row['why']}" for row in rows if row["verdict"] in ("inferior", "veto")]
    champion_row = _champion(new, champion, inverse, weights, config, alpha)
    if champion_row and champion_row["loss"] > config.champion_allowance:
        reasons.append(
            f"{100 * champion_row['loss']:.2f} points below the reference champion {champion_row['name']} "
            "(another one: autolabel models pin VERSION)"
        )
    if not config.enabled:
        reasons.append("promotion is switched off (evaluate.gate.enabled)")
    verdict = {
        "promote": not reasons,
        "reasons": reasons,
        "gain": mean,
        "classes": rows,
        "champion": champion_row,
        "look": looks,
        "alpha": alpha,
        "alpha_total": config.alpha,
        "blocks": int(weights.shape[1]),
        "images": len(blocks),
        "candidate": candidate.name,
        "incumbent": incumbent.name,
        "notes": [*_notes(config, classes), *filter(None, [class_note(rows)])],
    }
    verdict["sentence"] = _sentence(verdict)
    return verdict


def _notes(config: GateConfig, classes: Sequence[str]) -> list[str]:
    there = {name.lower() for name in classes}
    if config.veto_recall and not there & {name.lower() for name in config.veto_recall}:
        return [
            f"no class is called {' or '.join(config.veto_recall)}: nobody's recall is protected by a veto "
            "(evaluate.gate.veto_recall)"
        ]
    return []


def _mean_gain(
    new: Scores, old: Scores, config: GateConfig, aa_mean_iou: Sequence[float], alpha: float, blocks: int
) -> dict[str, Any]:
    """The gain in mean IoU with its bounds, and the smallest gain that this set could have shown."""
    known = config.seed_sd is not None
    seed_sd = config.seed_sd if known else seed_sd_of(aa_mean_iou, config.min_aa_runs)
    gain, draws = paired(new, old)
    boot_se = float(np.std(draws, ddof=1))
    # Drawing n of n blocks shrinks the variance by (n - 1) / n.
    boot = boot_se**2 * blocks / max(1, blocks - 1)
    # Candidate and incumbent are one training each: their difference carries the seed variance twice.
    seed = 2.0 * (seed_sd or 0.0) ** 2
    se = float(np.sqrt(boot + seed))
    uncertain = boot**2 / max(1, blocks - 1) + (0.0 if known or not seed else seed**2 / (len(aa_mean_iou) - 1))
    freedom = (boot + seed) ** 2 / uncertain if uncertain > 0 else 1e6
    t = float(t_quantile(1 - alpha, min(max(freedom, 1.0), 1e6)))
    return {
        "value": gain,
        "low": gain - t * se,
        "high": gain + t * se,
        "standard_error": se,
        "bootstrap_se": boot_se,
        "seed_sd": seed_sd,
        "aa_runs": len(aa_mean_iou),
        "freedom": freedom,
        "smallest_detectable": (t + _NORMAL.inv_cdf(config.power)) * se,
        "candidate": float(new.mean),
        "incumbent": float(old.mean),
    }


def _same_images(candidate: Judged, incumbent: Judged, champion: Judged | None, blocks: Sequence[str]) -> None:
    for other in (incumbent, champion):
        if other is not None and other.images != candidate.images:
            raise InputError(
                f"gate: {candidate.name} and {other.name} were judged on different images "
                f"({len(candidate.images)} and {len(other.images)})",
                hint="evaluate both on the same selection",
            )
    if len(blocks) != len(candidate.images) or not blocks:
        raise InputError(f"gate: {len(candidate.images)} images but {len(blocks)} block ids")


def _champion(
    new: Scores,
    champion: Judged | None,
    inverse: NDArray[np.intp],
    weights: NDArray[np.float64],
    config: GateConfig,
    alpha: float,
) -> dict[str, Any] | None:
    if champion is None:
        return None
    best = Scores.of(champion.confusions, inverse, weights)
    loss, draws = paired(best, new)
    se = float(np.std(draws, ddof=1))
    t = float(t_quantile(1 - alpha, max(1.0, weights.shape[1] - 1.0)))
    return {
        "name": champion.name,
        "mean_iou": best.mean,
        "loss": loss,
        "low": loss - t * se,
        "high": loss + t * se,
        "allowance": config.champion_allowance,
    }


def _bounds_of(verdict: dict[str, Any]) -> str:
    """What the gate's bounds hold, which are wider than a report's interval."""
    gain = verdict["gain"]
    seeds = f", spread of {gain['aa_runs']} A/A trainings" if gain["seed_sd"] and gain["aa_runs"] else ""
    return f"bounds at alpha {verdict['alpha']:.3g} for look {verdict['look']}{seeds}"


def _sentence(verdict: dict[str, Any]) -> str:
    gain = verdict["gain"]
    told = (
        f"{verdict['candidate']} {100 * gain['value']:+.2f} points against {verdict['incumbent']} "
        f"[{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}] ({_bounds_of(verdict)}); the smallest gain this set "
        f"could have shown is "
        f"{100 * gain['smallest_detectable']:.2f}."
    )
    return ("Promote: " if verdict["promote"] else "Keep the incumbent: ") + told
