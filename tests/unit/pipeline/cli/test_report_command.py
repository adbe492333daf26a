"""`autolabel report --over`: one report over many workspaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core import taxonomy
from hmsa_core.io import atomic
from hmsa_core.labels.thresholds.policy import from_threshold


def workspace(root: Path, **files: object) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    for name, value in files.items():
        path = root / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, value)
    return root


def _model(value: float) -> dict[str, object]:
    return {"settings": {"multi": {"value": value, "low": value - 0.01, "high": value + 0.01}}}


def test_figures_gates_and_thresholds_of_workspaces_stand_next_to_each_other(tmp_path: Path, said) -> None:
    gain = {"value": 0.012, "low": 0.002, "high": 0.022}
    metrics = {"main_setting": "multi", "models": {"teacher": _model(0.61), "student": _model(0.625)}}
    done = workspace(
        tmp_path / "berlin",
        data__index__summary={"target": {"images": 1200}},
        labels__final__statistics={"images": 900, "labelled_share": 0.731},
        evaluation__metrics=metrics | {"kept": {"precision": 0.991}, "differences": {"student - control": gain}},
        evaluation__verdict={"sentence": "Promote the student."},
    )
    (done / "calibration").mkdir()
    from_threshold(0.9, taxonomy.cityscapes()).save(done / "calibration/policy.json")
    begun = workspace(tmp_path / "ulm")
    printed = said("report", "--over", done, begun, "--html", tmp_path / "all.html").out
    figures, thresholds = (part.splitlines() for part in printed.split("\n\n"))
    cells = "berlin 1200 900 73.1 99.10 61.0 62.5 – +1.2 +0.2 … +2.2 Promote the student."
    assert " ".join(figures[1].split()) == cells
    assert figures[2].split() == ["ulm", *["–"] * 10]
    assert thresholds[0].split() == ["threshold", "berlin", "ulm"]
    assert next(line for line in thresholds if line.startswith("road")).split() == ["road", "0.90", "–"]
    page = (tmp_path / "all.html").read_text()
    assert "<h1>2 workspaces</h1>" in page
    assert "Promote the student." in page


@pytest.mark.parametrize(("given", "words"), [("ulm", "ulm is given twice"), ("none", "none: no such folder")])
def test_a_workspace_that_is_given_twice_or_is_none_is_one_line(given: str, words: str, tmp_path: Path, said) -> None:
    ulm = workspace(tmp_path / "ulm")
    assert words in said("report", "--over", ulm, tmp_path / given, status=2).err
