"""One table of results: the terminal and the pages show the same figures, and nothing from data becomes markup."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from pipeline.jobs.provenance import commit_of
from pipeline.report.render import Name, Share, Status, Table
from pipeline.report.results import against_global, differences, iou_by_class, summary_text
from pipeline.workspace.workspace import Workspace

MARKUP = "<script>alert(1)</script>"


def _found(value: float | None, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "blocks": 8, "level": 0.95, "draws": 200, **more}


@pytest.fixture
def metrics() -> dict[str, Any]:
    teacher = _found(0.5, 0.41, 0.6, classes={"road": [0.9, 0.8, 0.95], "sky": None})
    student = _found(0.61, 0.5, 0.7, classes={"road": [0.91, None, None]})
    kept = {"road": {"status": "measured", "threshold": "0.90", "precision": 0.978, "lower": 0.95, "upper": 0.99}}
    kept = {"road": kept["road"] | {"coverage": 0.8, "blocks": 8}, "sky": {"status": "withheld", "threshold": None}}
    rival = {"name": "one threshold", "worst_precision": 0.5, "worst_class": "road", "class_mean_coverage": 0.25}
    return {
        "classes": ["road", "sky"],
        "main_setting": "multi",
        "judgement": {"judged": 12},
        "models": {"student": {"settings": {"multi": student}}, "teacher": {"settings": {"multi": teacher}}},
        "differences": {
            "student - teacher": _found(0.11, 0.01, 0.2),
            "student - control": _found(0.01, -0.01, 0.2),
            "of one block": _found(0.11, None, None),
        },
        "kept": {
            **{f"{prefix}{key}": 0.5 for prefix in ("", "class_mean_") for key in ("precision", "coverage")},
            "threshold": "policy",
            "classes": kept,
            "beside": {"classes": ["road"], "rows": [rival]},
        },
    }


def _cells(table: Table) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in table.rows]


def test_a_difference_is_sure_only_where_its_interval_lies_on_one_side_of_zero(metrics: dict[str, Any]) -> None:
    assert _cells(differences(metrics)) == [
        ["student - teacher", "+11.00", "+1.00 … +20.00", "8", "yes"],
        ["student - control", "+1.00", "-1.00 … +20.00", "8", "no"],
        ["of one block", "+11.00", "no interval", "8", "too few blocks"],
    ]


def test_the_teacher_comes_first_and_a_class_without_a_figure_has_a_dash(metrics: dict[str, Any]) -> None:
    table = iou_by_class(metrics, ["road", "sky"])
    assert table.head == ["class", "teacher · multi", "student · multi"]
    assert _cells(table) == [["road", "90.0", "91.0"], ["sky", "–", "–"], ["mean", "50.0", "61.0"]]
    assert '<td>90.0 <span class="range">80.0…95.0</span></td><td>91.0</td>' in table.html()


def test_the_terminal_says_in_ten_lines_what_was_learned_kept_right_and_gained_and_what_is_next(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    ws = Workspace(tmp_path)
    with pytest.raises(InputError, match=r"metrics\.json: not there"):
        summary_text(ws)
    metrics["labels"] = {"mean_iou": 0.5}
    metrics["models"]["control"] = {"settings": {"multi": _found(0.6, 0.5, 0.7)}}
    atomic.write_text(ws.path("evaluation/metrics.json"), json.dumps(metrics))
    atomic.write_text(ws.path("labels/final/statistics.json"), json.dumps({"images": 7}))
    atomic.write_text(ws.path("data/index/summary.json"), json.dumps({"target": {"by_role": {"learn": 5}}}))
    assert (
        summary_text(ws)
        == """\
learned   from 5 fine labels
labelled  7 images by a network of 50.0 mIoU
kept      50.0 % of the pixels (threshold: policy), 50.0 % of them right on 12 images; least right: road, 97.8 %
gained    The student is better: 61.0 against 50.0 mIoU (+11.0, interval 1.0 to 20.0).
          The auto-labels are not shown to help: the same training without them reaches 60.0 (+1.0, interval -1.0 to 20.0).
          The auto-labels themselves reach 50.0 (-10.0 to the control): they teach nothing new. Adopt another network (autolabel adopt), or label more images.
          One training does not show how much seeds differ; `autolabel models aa` measures it, then nights may promote.
next      autolabel serve labels/raw  the photographs, what is kept of them and how much is right
          report/index.html           all figures, class by class
          autolabel advise            which classes to label by hand next
"""
    )


def test_the_report_compares_the_policy_with_one_threshold_for_all(metrics: dict[str, Any]) -> None:
    table = against_global(metrics["kept"])
    assert table is not None
    assert _cells(table) == [["one threshold", "50.00", "road", "25.0"]]
    metrics["kept"]["beside"]["classes"] = []
    assert against_global(metrics["kept"]) is None, "no class's threshold was measured"


def test_what_data_holds_never_becomes_markup() -> None:
    cells = [MARKUP, Name(MARKUP, (1, 2, 3)), Status(MARKUP), Share(0.5, 0.4, 0.6)]
    table = Table([MARKUP, "", "", ""], [cells])
    assert "<script" not in table.html()
    assert table.html().count("&lt;script&gt;") >= 4
    assert MARKUP in table.text()


def test_the_commit_of_a_project_that_only_holds_the_installed_package_is_not_ours(tmp_path: Path) -> None:
    site = tmp_path / "venv"
    atomic.write_text(site / "pipeline/__init__.py", "")
    atomic.write_text(tmp_path / ".gitignore", "venv/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", ".gitignore"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    assert commit_of(site) == {"commit": None, "uncommitted": []}
    subprocess.run([*git, "add", "-f", "venv/pipeline/__init__.py"], cwd=tmp_path, check=True)
    assert commit_of(site)["commit"]
