"""Does evidence beside the confidence tell better which labels are right? Measured, before anything is stored.

python -m research.evidence WORKSPACE            # a workspace with a trained teacher

Evidence of a pixel: second score, agreement of scales and of the mirrored image, distance to a boundary of the label,
size of its connected piece. P(right) is fitted on calibration images (gradient boosting, rising in the confidence) and
judged on report images, beside the confidence alone: AUROC of each class, and mean coverage of the classes where each
of them is cut at the same precision. Intervals: bootstrap over blocks of the report images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import RuntimeConfig
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index
from hmsa_core.inference.predict import open_tiler
from hmsa_core.metrics.boundary import boundary_band
from pipeline.cli.main import run_command
from pipeline.workspace import Workspace

Floats = NDArray[np.float64]
FEATURES = ("confidence", "second", "scales", "flip", "distance", "size")
SETS = {
    "second score": ("second",),
    "agreement of scales and flip": ("scales", "flip"),
    "distance to a boundary": ("distance",),
    "size of the piece": ("size",),
    "all of it": FEATURES[1:],
}
_DRAWS = 300  # of blocks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--every", type=int, default=4, help="pixels: one of so many (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    ws = Workspace.find(args.workspace)
    index = Index.load(ws.path("data/index/target.parquet"))
    tiler = open_tiler(ws.path("models/teacher"), RuntimeConfig())
    parts = {role: _pixels(ws, index, tiler, role, args.every) for role in ("calibrate", "report")}
    found = measure(parts["calibrate"], parts["report"], index.classes.classes)
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if args.out is not None:
        args.out.write_text(text + "\n")
    return 0


def _pixels(ws: Workspace, index: Index, tiler: Any, role: str, every: int) -> dict[str, Floats]:
    rng, columns, blocks = np.random.default_rng(0), [], []
    for sample in index.select(roles=[role], kinds=["fine"]):
        image = read_image(ws.roots["target"] / sample.image)
        truth = read_label(ws.roots["target"] / sample.label, index.classes)
        label, confidence, evidence = _evidence(tiler, image, tuple(ws.params.auto_infer.scales))
        if truth.shape != label.shape:
            truth = cv2.resize(truth, label.shape[::-1], interpolation=cv2.INTER_NEAREST)
        picked = (truth != 255) & (rng.random(truth.shape) < 1 / every)
        rows = [label, truth == label, confidence, *evidence]
        columns.append(np.stack([np.asarray(row, np.float64)[picked] for row in rows]))
        if sample.block not in blocks:
            blocks.append(sample.block)
        columns[-1] = np.vstack([columns[-1], np.full(columns[-1].shape[1], blocks.index(sample.block))])
    names = ("label", "right", *FEATURES, "block")
    return dict(zip(names, np.concatenate(columns, axis=1), strict=True))


def _evidence(tiler: Any, image: NDArray[np.uint8], scales: tuple[float, ...]) -> tuple[Any, Any, list[Any]]:
    probabilities = tiler.probabilities(image, scales, True)
    label = probabilities.argmax(0)
    ranked = np.partition(probabilities, -2, axis=0)
    # A set of scales holds 1.0: scales agree where each of them, beside 1.0, gives the label its score.
    alone = [tiler.probabilities(image, tuple(sorted({scale, 1.0})), True) for scale in scales]
    mirrored = tiler.probabilities(image, scales, False)
    own = [np.take_along_axis(p, label[None], 0)[0] for p in (*alone, mirrored)]
    edges = boundary_band(label.astype(np.uint8), 1.0)
    distance = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, 3)
    size = np.zeros(label.shape)
    for c in np.unique(label):
        count, ids, stats, _ = cv2.connectedComponentsWithStats((label == c).astype(np.uint8), connectivity=8)
        for i in range(1, count):
            size[ids == i] = np.log(stats[i, cv2.CC_STAT_AREA])
    return label, ranked[-1], [ranked[-2], np.min(own[:-1], axis=0), own[-1], distance, size]


def measure(fit: dict[str, Floats], judge: dict[str, Floats], names: tuple[str, ...]) -> dict[str, Any]:
    """AUROC and coverage of each set of evidence, beside the confidence alone."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    scores = {"confidence": judge["confidence"]}
    seconds = {}
    for name, extra in SETS.items():
        used = ("confidence", *extra)
        rising = [1] + [0] * len(extra) + [0]
        model = HistGradientBoostingClassifier(
            max_iter=120, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=300, monotonic_cst=rising,
            categorical_features=[len(used)], random_state=0,
        )  # fmt: skip
        begun = time.perf_counter()
        model.fit(np.stack([*(fit[key] for key in used), fit["label"]], 1), fit["right"])
        scores[name] = model.predict_proba(np.stack([*(judge[key] for key in used), judge["label"]], 1))[:, 1]
        seconds[name] = round(time.perf_counter() - begun, 1)
    found: dict[str, Any] = {"pixels": {"fit": len(fit["label"]), "judged": len(judge["label"])}, "seconds": seconds}
    blocks, rng = int(judge["block"].max()) + 1, np.random.default_rng(0)
    draws = np.stack([np.bincount(rng.integers(0, blocks, blocks), minlength=blocks) for _ in range(_DRAWS)])
    weights = np.vstack([np.ones(blocks), draws])
    tables = {name: _table(judge, score, weights, len(names)) for name, score in scores.items()}
    plain_auroc, plain_coverage = tables["confidence"]
    for name, (auroc, coverage) in tables.items():
        gain = {t: coverage[t].mean(1) - plain_coverage[t].mean(1) for t in coverage}
        found[name] = {
            "auroc": {n: round(float(a), 4) for n, a in zip(names, auroc, strict=True) if np.isfinite(a)},
            "auroc_mean": round(float(np.nanmean(auroc)), 4),
            "auroc_gain": round(float(np.nanmean(auroc - plain_auroc)), 4),
            **{
                f"coverage_{t}": {
                    "mean": round(float(coverage[t][0].mean()), 4),
                    "gain": round(float(gain[t][0]), 4),
                    "95 %": [round(float(q), 4) for q in np.quantile(gain[t][1:], [0.025, 0.975])],
                }
                for t in coverage
            },
        }
    return found


def _table(
    judge: dict[str, Floats], score: Floats, weights: Floats, classes: int
) -> tuple[Floats, dict[float, Floats]]:
    """AUROC (C,), and coverage (1 + draws, C) where each class is cut at the largest coverage with that precision."""
    auroc = np.full(classes, np.nan)
    coverage = {t: np.zeros((len(weights), classes)) for t in (0.9, 0.95)}
    for c in range(classes):
        mine = judge["label"] == c
        right, block = judge["right"][mine], judge["block"][mine].astype(int)
        if not 0 < right.sum() < len(right):
            continue
        order = np.argsort(-score[mine], kind="stable")
        _, inverse, counts = np.unique(score[mine], return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        good = right.sum()
        auroc[c] = (ranks[right == 1].sum() - good * (good + 1) / 2) / (good * (len(right) - good))
        right, block = right[order], block[order]
        for i, of_block in enumerate(weights):
            w = of_block[block]
            kept, correct = np.cumsum(w), np.cumsum(w * right)
            for t, rows in coverage.items():
                passes = np.flatnonzero(correct >= t * np.maximum(kept, 1e-9))
                rows[i, c] = kept[passes[-1]] / max(kept[-1], 1) if len(passes) else 0.0
    return auroc, coverage


if __name__ == "__main__":
    sys.exit(run_command("python -m research.evidence", sys.modules[__name__], sys.argv[1:]))
