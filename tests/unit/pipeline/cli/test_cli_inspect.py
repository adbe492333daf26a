"""`autolabel inspect` as people and scripts use it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.labels import LabelStoreWriter
from pipeline.cli.main import main
from pipeline.inspector.session import Session


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images: one surely road, one half rider."""
    path = tmp_path_factory.mktemp("inspect") / "raw"
    with LabelStoreWriter(path, {"teacher": "t" * 64}) as writer:
        writer.add("sure", np.zeros((10, 10), np.uint8), np.full((10, 10), 0.99, np.float32), city="ulm")
        label = np.full((10, 10), 12, np.uint8)
        label[:5] = 0
        confidence = np.full((10, 10), 0.85, np.float32)
        confidence[9] = 0.96
        writer.add("unsure", label, confidence, city="bonn")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    assert main(["inspect", *map(str, args), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_json_counts_kept_pixels(store: Path, capsys) -> None:
    found = run_json(capsys, store, "--threshold", "0.9")
    assert (found["pixels"], found["kept"], found["kept_share"]) == (200, 110, 55.0)
    rider = next(row for row in found["classes"] if row["name"] == "rider")
    assert (rider["predicted"], rider["kept"], rider["coverage"], rider["precision"]) == (50, 10, 20.0, None)


def test_one_class_alone(store: Path, capsys) -> None:
    found = run_json(capsys, store, "--threshold", "0.9", "--class", "RIDER", "--sort", "coverage")
    assert [row["name"] for row in found["classes"]] == ["rider"]
    assert found["kept"] == 10
    assert [row["name"] for row in found["most_affected"]] == ["unsure"]


def test_two_thresholds_side_by_side_show_what_the_step_costs(store: Path, capsys) -> None:
    found = run_json(capsys, store, "--threshold", "0.8", "--threshold", "0.95")
    assert [stats["kept"] for stats in found["thresholds"]] == [200, 110]
    assert found["step"]["kept"] == -90
    assert {"id": 12, "name": "rider", "kept": -40} in found["step"]["classes"]


def test_tables_show_the_same_without_colour_codes_in_a_pipe(store: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.cli.main",
        "inspect",
        str(store),
        "--threshold",
        "0.9",
        "--sort",
        "drop:0.8:0.95",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert "rider" in done.stdout
    assert "20.0 %" in done.stdout
    assert "unsure" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [(["--threshold", "0.9051"], 2, "0.905 and 0.906"), ([], 2, "which threshold"), (["--threshold", "abc"], 2, "not a number"),
     (["--threshold", "0.9", "--class", "nobody"], 3, "unknown class"), (["--threshold", "0.9", "--sort", "size"], 2, "sort"),
     (["--policy", "/nowhere.json"], 3, "not found"), (["--threshold", "0.9", "--limit", "-1"], 2, "--limit"),
     (["--threshold", "0.8", "--threshold", "0.9", "--threshold", "0.95"], 2, "at most two")],
)  # fmt: skip
def test_bad_input_is_one_clear_line(store: Path, capsys, args: list[str], code: int, words: str) -> None:
    assert main(["inspect", str(store), *args]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err.splitlines()[0]
    assert len(captured.err.splitlines()) <= 2


def test_a_policy_saved_on_the_page_can_be_looked_at_and_exported(store: Path, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "raw"
    shutil.copytree(store, mine)
    session = Session(mine)
    saved, _ = session.save_policy(session.cuts("0.9"))
    assert saved == tmp_path / "raw.policy.json"
    assert run_json(capsys, mine, "--policy", saved)["kept"] == 110
    for more in ([], ["--save-policy", str(saved)]):
        assert main(["serve", str(mine), "--policy", str(saved), "--export", str(tmp_path / "page"), *more]) == 0
    assert (tmp_path / "page/index.html").is_file()
    assert main(["serve", str(mine), "--policy", str(saved), "--save-policy", str(saved), "--port", "0"]) == 2
    assert "hint: leave --save-policy out" in capsys.readouterr().err


def test_what_is_no_store_is_said(tmp_path: Path, capsys) -> None:
    assert main(["inspect", str(tmp_path), "--threshold", "0.9"]) == 4
    assert "no label store here" in capsys.readouterr().err
