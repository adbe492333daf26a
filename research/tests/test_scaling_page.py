"""docs/scaling.md holds what the script computes from the committed measurements, and the sums are right."""

from __future__ import annotations

import pytest

from hmsa_core.io.atomic import read_json
from research.bench.scaling import BEGIN, COUNTS, END, PAGE, RATES, Assumed, row_of, tables


def test_the_page_is_up_to_date() -> None:
    made = tables(read_json(RATES)["result"], Assumed())
    assert made == PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0].strip(), (
        "python -m research.bench.scaling --write"
    )


def test_a_few_figures_by_hand() -> None:
    rates = read_json(RATES)["result"]
    rows = [row_of(images, rates, Assumed()) for images in COUNTS]
    # 32.1 TFLOP at 35 % of 989 TFLOP/s: 0.0927 s an image.
    assert rows[1]["infer_gpu_h"] == pytest.approx(1e6 * 32.1 / (0.35 * 989) / 3600)
    assert rows[1]["images_tb"] == pytest.approx(rates["image_bytes"] * 1e6 / 1e12)
    assert rows[2]["infer_h"] == pytest.approx(100 * rows[1]["infer_h"])
    assert rows[1]["near_h"] == pytest.approx(2500 * rows[0]["near_h"]), "all pairs: the one figure that is not linear"
    assert rows[0]["files"] == pytest.approx(2 * 79 * rates["files_per_shard"])
