"""Simulated teachers on simulated scenes: calibration images whose errors depend on class, confidence and block."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from hmsa_core.labels import ConfidenceCode
from hmsa_core.labels.thresholds.curves import CalibrationImage

_CODE = ConfidenceCode()


def world(
    blocks: int,
    per_block: int,
    *,
    seed: int,
    shape: tuple[int, int] = (48, 64),
    noise: float = 0.12,
    overconfident: float = 1.5,
    absent: tuple[int, ...] = (),
    bias: tuple[float, ...] = (0, 0, 0, -0.5, -0.8),
) -> Iterator[CalibrationImage]:
    """Images of 5 classes; the last class is given too confidently, and some blocks are harder than others."""
    rng = np.random.default_rng(seed)
    height, width = shape
    for b in range(blocks):
        hard = np.exp(0.5 * rng.standard_normal())
        for i in range(per_block):
            low = rng.standard_normal((height // 16 + 1, width // 16 + 1, 5)) + np.array(bias)
            low[..., list(absent)] = -9
            field = cv2.resize(low.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
            truth = field.argmax(axis=-1).astype(np.uint8)
            small = rng.standard_normal((height // 8, width // 8, 5)).astype(np.float32)
            logits = 6 * (field + noise * hard * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
            logits[..., 4] += overconfident
            exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
            p = exps / exps.sum(axis=-1, keepdims=True)
            truth[:2] = 255
            label = p.argmax(axis=-1).astype(np.uint8)
            yield CalibrationImage(f"b{b:02d}_{i}", f"b{b:02d}", label, _CODE.encode(p.max(axis=-1)), truth)
