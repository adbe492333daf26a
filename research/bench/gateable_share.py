"""How much of the 2.0x scale could be skipped with a trained hierarchical model? Measured before writing kernels.

    python research/bench/gateable_share.py --workspace DIR [--limit 40] [--tiles 24,64] [--threshold 0.9] [--write]

The weight of 2.0x is known before it is computed: w = (1 - a_1) (1 - U(a_0.5)). Without it (its scores replaced by
those of 1.0x) every score moves by w (L_2 - L_1), so class differences move by at most w q where q is a quantile of
the spread of L_2 - L_1 over classes, taken from the calibration images. A tile is gated when at none of its
pixels such a move could change the class or the state kept/withheld at the threshold. Reported on the
judged images, for each tile size and quantile: share of the pixels in gated tiles, and what gating really changed.
`oracle_share`: pixels in tiles where leaving 2.0x out changes no thresholded label at all; no rule without errors
can gate more. `budget`: the share when half a percent of the thresholded labels may change, tiles taken in the order
of the pixels that could change (`rule`, cut chosen on the calibration images) or of those that do (`oracle`).
`speedup_bound`: 5.25 / (1.25 + 4 s), what `rule` could gain if all else were free; s is the share of 2.0x that must
be computed all the same: tiles that are not gated, with so many pixels of context around each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch

from hmsa_core import models
from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Index
from hmsa_core.inference.predictor import Predictor
from pipeline.workspace import Workspace
from research.bench.run import machine, record

BUDGET = 0.005  # share of the thresholded labels that may change
CONTEXTS = (0, 16, 32)  # pixels of the image around a tile
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def maps_of(predictor: Predictor, image: np.ndarray) -> dict[str, np.ndarray]:
    """Fused scores with and without 2.0x, its weight, and the spread of what it adds before weighting."""
    opened = predictor.open(image)
    size = image.shape[:2]
    with_top = opened.scores((0.5, 1.0, 2.0), False)(0, size[0])[0]
    without = opened.scores((0.5, 1.0), False)(0, size[0])[0]
    weight = opened.weight_maps((0.5, 1.0, 2.0), False)[2.0]
    levels = opened._levels("hierarchical", (1.0, 2.0), False)[0]
    top, one = (level.values.resized(size)(0, size[0])[0] for level in levels)
    change = top - one
    return {"with": with_top, "without": without, "weight": weight, "spread": change.max(0) - change.min(0)}


def decision(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, its probability, and its lead over the second class."""
    ordered = np.partition(scores, len(scores) - 2, axis=0)
    exponents = np.exp(scores - ordered[-1])
    return scores.argmax(0), 1 / exponents.sum(0), ordered[-1] - ordered[-2]


def is_stable(maps: dict[str, np.ndarray], q: float, threshold: float) -> np.ndarray:
    """Pixels whose class and state cannot change if class differences move by at most weight x q."""
    move = np.minimum(maps["weight"] * q, 80.0)  # beyond it exp is as good as infinite
    _, p, lead = decision(maps["without"])
    odds = np.maximum(1 / p - 1, 1e-12)
    low, high = 1 / (1 + odds * np.exp(move)), 1 / (1 + odds * np.exp(-move))
    return (move < lead) & ((low >= threshold) | (high < threshold))


def tile_all(mask: np.ndarray, tile: int) -> np.ndarray:
    """Per pixel: whether its whole tile is set."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % tile), (0, -width % tile)), constant_values=True)
    rows, columns = padded.shape[0] // tile, padded.shape[1] // tile
    whole = padded.reshape(rows, tile, columns, tile).all(axis=(1, 3))
    return np.repeat(np.repeat(whole, tile, 0), tile, 1)[:height, :width]


def images_of(ws: Workspace, role: str, limit: int) -> list[Path]:
    """Image files of a role of a workspace, evenly spread over its list."""
    index = Index.load(ws.path(f"data/index/{role}.parquet"))
    files = [ws.roots[index.root] / sample.image for sample in index.samples if sample.role == role]
    return files[:: max(1, -(-len(files) // limit))]


def measure(ws: Workspace, limit: int, tiles: list[int], threshold: float) -> dict[str, Any]:
    """All figures for a workspace's teacher."""
    predictor = Predictor(models.load(ws.path("models/teacher")), in_place=True)
    roles = ("calibrate", "report")
    fit, judge = ([maps_of(predictor, read_image(path)) for path in images_of(ws, role, limit)] for role in roles)
    spreads = np.concatenate([m["spread"].ravel()[::7] for m in fit])
    rows = []
    for quantile in QUANTILES:
        q = float(np.quantile(spreads, quantile))
        for tile in tiles:
            result = judged(judge, q, tile, threshold)
            budget = budget_shares(fit, judge, q, tile, threshold)
            case = f"quantile {quantile:g}, tiles of {tile}"
            rows.append({"case": case, "q": round(q, 3)} | result | {"budget": budget})
    return {
        "images": len(judge),
        "images_for_the_bounds": len(fit),
        "threshold": threshold,
        "mean_weight_of_2x": round(float(np.mean([m["weight"].mean() for m in judge])), 4),
        "oracle_share": {f"tiles of {tile}": oracle_share(judge, tile, threshold) for tile in tiles},
        "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="a finished one; its own teacher is looked at")
    parser.add_argument("--limit", type=int, default=40, help="images of either role")
    parser.add_argument("--tiles", default="24,64", help="pixels, with commas")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument(
        "--write", action="store_true", help="to research/bench/results, and make docs/benchmarks.md anew"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    ws = Workspace(args.workspace)
    where = machine()
    result = measure(ws, args.limit, [int(part) for part in args.tiles.split(",")], args.threshold)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if args.write:
        command = "python research/bench/gateable_share.py --workspace DIR --write"
        record(f"gateable-{ws.params.profile}", command, where, result)
    return 0


def states(maps: dict[str, np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Thresholded labels with and without 2.0x."""
    both = []
    for name in ("with", "without"):
        label, p, _ = decision(maps[name])
        both.append(np.where(p >= threshold, label, 255))
    return both[0], both[1]


def oracle_share(found: list[dict[str, np.ndarray]], tile: int, threshold: float) -> float:
    """Share of the pixels whose whole tile keeps all of its thresholded labels without 2.0x."""
    shares = [tile_all(np.equal(*states(maps, threshold)), tile).mean() for maps in found]
    return round(float(np.mean(shares)), 4)


def tile_means(mask: np.ndarray, tile: int) -> np.ndarray:
    """Share of set pixels of each tile, flat (a rest at the right and lower edge is left out)."""
    rows, columns = mask.shape[0] // tile, mask.shape[1] // tile
    whole = mask[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile)
    return whole.mean(axis=(1, 3)).ravel()


def within_budget(risk: np.ndarray, changed: np.ndarray) -> float:
    """Highest risk up to which all tiles may be gated without changing more than the budget of all pixels."""
    order = np.argsort(risk, kind="stable")
    spent = np.cumsum(changed[order]) / len(changed)
    fits = int(np.searchsorted(spent, BUDGET, side="right"))
    return float(risk[order][fits - 1]) if fits else -1.0


def budget_shares(
    fit: list[dict[str, np.ndarray]], found: list[dict[str, np.ndarray]], q: float, tile: int, threshold: float
) -> dict[str, float]:
    """Share of gated tiles, and what changes, when some change is allowed."""

    def tiles(maps: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        risk = [tile_means(~is_stable(m, q, threshold), tile) for m in maps]
        changed = [tile_means(np.not_equal(*states(m, threshold)), tile) for m in maps]
        return np.concatenate(risk), np.concatenate(changed)

    cut = within_budget(*tiles(fit))
    risk, changed = tiles(found)
    rule, oracle = risk <= cut, changed <= within_budget(changed, changed)
    grid = [side // tile for side in found[0]["weight"].shape[-2:]]
    computed = {c: computed_share(~rule.reshape(-1, *grid), tile, c) for c in CONTEXTS}
    return {
        "rule_share": round(float(rule.mean()), 4),
        "rule_changed": round(float((changed * rule).mean()), 5),
        "oracle_share": round(float(oracle.mean()), 4),
        "speedup_bound": {f"{c} pixels": round(5.25 / (1.25 + 4 * share), 2) for c, share in computed.items()},
    }


def computed_share(needed: np.ndarray, tile: int, context: int) -> float:
    """Share of the pixels within `context` pixels of a tile that is needed; tiles as images x rows x columns."""
    shares = []
    for one in needed:
        mask = np.repeat(np.repeat(one.astype(np.uint8), tile, 0), tile, 1)
        wide = cv2.dilate(mask, np.ones((2 * context + 1,) * 2, np.uint8)) if context else mask
        shares.append(float(wide.mean()))
    return float(np.mean(shares))


def judged(found: list[dict[str, np.ndarray]], q: float, tile: int, threshold: float) -> dict[str, float]:
    gated = classes = kept = 0.0
    for maps in found:
        skip = tile_all(is_stable(maps, q, threshold), tile)
        gated += skip.mean()
        classes += (skip & (decision(maps["with"])[0] != decision(maps["without"])[0])).mean()
        kept += (skip & np.not_equal(*states(maps, threshold))).mean()
    n = len(found)
    return {
        "gated_share": round(gated / n, 4),
        "classes_changed": round(classes / n, 5),
        "thresholded_labels_changed": round(kept / n, 5),
    }


if __name__ == "__main__":
    sys.exit(main())
