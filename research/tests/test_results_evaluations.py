"""Kept answers of `autolabel evaluate --json` on the results page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import IntegrityError
from research.results.evaluations import evaluation_sections

MADE = {
    "command": "autolabel evaluate --json",
    "machine": {"processor": "A processor", "cores": 2, "gpus": []},
    "versions": {"python": "3"},
    "commit": "c0ffee" * 6,
    "uncommitted": [],
}


def answer(mean: float, **more: Any) -> dict[str, Any]:
    return {
        "format": "hmsa-evaluation",
        "version": 1,
        "judged": "cd" * 32,
        "mean_iou": mean,
        "iou": {"road": mean, "rider": None},
        "images": 7,
        "scales": [0.5, 1.0],
        "flip": True,
        "interval": {"value": mean, "low": mean - 0.1, "high": mean + 0.1},
        "checkpoint": "ab" * 32,
        "learned": {"images": 3},
        "made": MADE,
    } | more


def test_two_checkpoints_stand_side_by_side_with_their_difference_by_class(tmp_path: Path) -> None:
    gain = {
        "value": 0.02,
        "low": -0.01,
        "high": 0.05,
        "blocks": 4,
        "classes": {"road": [0.02, 0.01, 0.03], "rider": [None] * 3},
    }
    both = answer(0.52, boundary={"mean_iou": 0.2}, baseline=answer(0.5, learned={"images": 0}), difference=gain)
    atomic.write_json(tmp_path / "a-clip.json", both)
    (tmp_path / "a-clip.md").write_text("What it is.\n")
    page = "\n".join(evaluation_sections(tmp_path))
    assert page.startswith("## Scored: a clip\n\n`autolabel evaluate --json`; 7 images (`cdcdcdcdcdcd`).")
    assert "| model | {0.5, 1} + flip | 52.00 [42.00, 62.00] | 20.00 | `abababababab` | 3 |" in page
    assert "| baseline | {0.5, 1} + flip | 50.00 [40.00, 60.00] | - | `abababababab` | 0 |" in page
    assert (
        "Model - baseline: **+2.00 [-1.00, +5.00]**, 4 blocks; how two trainings of one recipe differ is not in it."
        in page
    )
    assert "| road | 52.00 | 50.00 | +2.00 [+1.00, +3.00] |" in page
    assert "| rider | - | - | - |" in page
    assert "Commit: c0ffeec0ffee." in page
    assert page.endswith("What it is.\n")


def test_one_checkpoint_without_an_interval_has_none_made_up(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "alone.json", answer(0.5, interval={"value": 0.5, "low": None, "high": None}))
    page = "\n".join(evaluation_sections(tmp_path))
    assert "| model | {0.5, 1} + flip | 50.00 | - |" in page
    assert "| class | IoU |" in page
    assert "Model - baseline" not in page


def test_an_answer_of_another_form_or_with_the_places_of_a_machine_is_refused(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "old.json", answer(0.5, format=None))
    with pytest.raises(IntegrityError, match=r"old\.json: not an answer of version 1"):
        evaluation_sections(tmp_path)
    elsewhere = MADE | {"command": "autolabel evaluate --images /home/me/secret --json"}
    atomic.write_json(tmp_path / "old.json", answer(0.5, made=elsewhere))
    with pytest.raises(IntegrityError, match="its command names /home/me/secret"):
        evaluation_sections(tmp_path)


def test_what_was_not_run_as_usual_is_told(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", answer(0.5, mode="max", long_edge=2177, score_at="resized"))
    page = "\n".join(evaluation_sections(tmp_path))
    assert "| {0.5, 1} + flip, fused by max, long edge 2177, scored at that size |" in page
