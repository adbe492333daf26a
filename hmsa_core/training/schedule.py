"""Learning rates: the paper's polynomial decay, scaling with the batch, warm-up, and the released variants.

All functions are pure. "Rate in force at epoch e" means during epoch e, counted from 0; the paper's
schedule reaches 0 only after the last epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hmsa_core.config import OptimiserConfig

__all__ = ["LearningRate", "poly", "poly2", "rescaled_poly", "scaled_lr"]


def poly(done: float, total: float, power: float) -> float:
    """Factor (1 - done / total) ^ power of the base rate; 0 at the end and after it."""
    return float(max(0.0, 1.0 - done / total) ** power)


def poly2(done: float, total: float, power: float, switch: float, power_after: float) -> float:
    """Polynomial decay whose power changes at `switch` (released code: `--poly_step`, power 1 then 2)."""
    return poly(done, total, power if done < switch else power_after)


def rescaled_poly(
    done: float, total: float, power: float, *, switch: float, rescale: float, power_after: float
) -> float:
    """Polynomial decay that starts again at `switch` from `rescale` x base rate (released: `scl-poly`)."""
    if done < switch:
        return poly(done, total, power)
    return rescale * poly(done - switch, total - switch, power_after)


def scaled_lr(config: OptimiserConfig, global_batch: int) -> float:
    """Base rate for this batch: `lr` is meant for `lr_reference_batch` crops a step.

    linear: Goyal et al. 2017 (arXiv 1706.02677); sqrt: Krizhevsky 2014 (arXiv 1404.5997).
    """
    ratio = global_batch / config.lr_reference_batch
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.lr_scaling]
    return config.lr * factor


@dataclass(frozen=True)
class LearningRate:
    """The rate of every step of a run.

    Attributes:
        config: rate, power, unit ("epoch": constant within an epoch, as released; "step": every step), warm-up.
        global_batch: crops a step.
        total_steps, epochs: length of the run.
    """

    config: OptimiserConfig
    global_batch: int
    total_steps: int
    epochs: int

    def at(self, step: int, epoch: int) -> float:
        """Rate in force during optimiser step `step` of epoch `epoch` (both 0-based)."""
        done, total = (epoch, self.epochs) if self.config.poly_unit == "epoch" else (step, self.total_steps)
        factor = poly(done, total, self.config.poly_power)
        # The first step must move something, hence step + 1: warm-up ends at the full rate.
        warm = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return scaled_lr(self.config, self.global_batch) * factor * warm
