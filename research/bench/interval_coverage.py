"""How often intervals over a few training runs hold the truth: ours, and the bootstrap that draws runs and blocks.

    python -m research.bench.interval_coverage [--trials 4000]

Differences of two models are normal: an effect of the run, one of the block, one of both together, each with its own
standard deviation. Figures are the share of 95 % intervals that hold the true difference (0) and their median width
with that of ours. The lowest of ours for each number of runs is the promise to make.
"""

from __future__ import annotations

import argparse

import numpy as np

from hmsa_core.metrics.bootstrap import interval_of_runs

SPREADS = ((1.0, 0.0, 0.2), (1.0, 0.5, 0.5), (1.0, 1.0, 0.0), (0.5, 1.0, 0.5), (0.2, 1.0, 0.2), (0.0, 1.0, 1.0))
DRAWS = 400


def ours(runs: np.ndarray, drawn: np.ndarray, blocks: int) -> np.ndarray:
    """Ends of the interval that tables of several runs show, for values in place of IoU."""
    low, high, _ = interval_of_runs(runs[:, None], drawn.mean(0)[:, None], blocks, 0.95)
    return np.concatenate([low, high])


def drawn_runs(drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Percentiles when each draw picks runs with replacement, too."""
    n = len(drawn)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=drawn.shape[1]).T / n
    return np.quantile((weights * drawn).sum(0), (0.025, 0.975))


def main() -> None:
    """Print a line for each number of blocks and runs and each spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    rng = np.random.default_rng(0)
    print("blocks runs  run, block, both  ours  drawing runs  width of that / ours")
    for blocks in (15, 68):
        for runs in (2, 3, 5):
            for run_sd, block_sd, both_sd in SPREADS:
                found = np.empty((trials, 2, 2))
                for trial in range(trials):
                    values = rng.normal(0, run_sd, (runs, 1)) + np.sqrt(blocks) * (
                        rng.normal(0, block_sd, (1, blocks)) + rng.normal(0, both_sd, (runs, blocks))
                    )
                    weights = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=DRAWS) / blocks
                    drawn = values @ weights.T
                    found[trial] = ours(values.mean(1), drawn, blocks), drawn_runs(drawn, rng)
                held = ((found[:, :, 0] <= 0) & (found[:, :, 1] >= 0)).mean(0)
                width = np.median(found[:, :, 1] - found[:, :, 0], axis=0)
                spread = f"{run_sd:.1f} {block_sd:.1f} {both_sd:.1f}"
                figures = f"{held[0]:.3f}  {held[1]:.3f}         {width[1] / width[0]:.2f}"
                print(f"{blocks:>6} {runs:>4}  {spread}       {figures}")


if __name__ == "__main__":
    main()
