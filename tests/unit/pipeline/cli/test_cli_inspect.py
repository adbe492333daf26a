"""`autolabel inspect` as people and scripts use it."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.store.sidecar import StoreStatistics
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.labels.thresholds.policy import from_threshold
from pipeline.cli.main import main
from pipeline.review.session import Session


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


def test_json_counts_kept_pixels(store: Path, inspect) -> None:
    found = inspect(store, "--threshold", "0.9")
    assert (found["pixels"], found["kept"], found["kept_share"]) == (200, 110, 55.0)
    rider = next(row for row in found["classes"] if row["name"] == "rider")
    assert (rider["predicted"], rider["kept"], rider["coverage"], rider["precision"]) == (50, 10, 20.0, None)


def test_one_class_alone(store: Path, inspect, said) -> None:
    found = inspect(store, "--threshold", "0.9", "--class", "RIDER", "--sort", "coverage")
    assert [row["name"] for row in found["classes"]] == ["rider"]
    assert found["kept"] == 10
    assert [row["name"] for row in found["most_affected"]] == ["unsure"]
    printed = said("inspect", store, "--threshold", "0.9", "--sort", "coverage", "--class", "rider", "--limit", "1").out
    assert any(line.endswith("with rider, by coverage") for line in printed.splitlines()), "on one line"


def test_two_thresholds_side_by_side_show_what_the_step_costs(store: Path, inspect) -> None:
    found = inspect(store, "--threshold", "0.8", "--threshold", "0.95")
    assert [stats["kept"] for stats in found["thresholds"]] == [200, 110]
    assert found["step"]["kept"] == -90
    assert {"id": 12, "name": "rider", "kept": -40} in found["step"]["classes"]


def test_tables_show_the_same_without_colour_codes_in_a_pipe(store: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli.main", "inspect", str(store), "--threshold", "0.9"]
    done = subprocess.run([*command, "--sort", "drop:0.8:0.95"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert "rider" in done.stdout
    assert "20.0 %" in done.stdout
    assert "unsure" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--threshold", "0.9051"], 2, "0.905 and 0.906"),
        (["--threshold", "abc"], 2, "not a number"),
        (["--threshold", "0.9", "--class", "nobody"], 3, "unknown class"),
        (["--threshold", "0.9", "--sort", "size"], 2, "sort"),
        (["--policy", "/nowhere.json"], 3, "not found"),
        (["--threshold", "0.9", "--limit", "-1"], 2, "--limit"),
        (["--threshold", "0.8", "--threshold", "0.9", "--threshold", "0.95"], 2, "at most two"),
    ],
)
def test_bad_input_is_one_clear_line(store: Path, said, args: list[str], code: int, words: str) -> None:
    captured = said("inspect", store, *args, status=code)
    assert captured.out == ""
    assert words in captured.err.splitlines()[0]
    assert len(captured.err.splitlines()) <= 2


def test_a_policy_saved_on_the_page_can_be_looked_at_and_exported(store: Path, tmp_path: Path, inspect, said) -> None:
    mine = tmp_path / "raw"
    shutil.copytree(store, mine)
    session = Session(mine)
    saved, _ = session.save_policy(session.thresholds("0.9"))
    assert saved == tmp_path / "raw.policy.json"
    assert inspect(mine, "--policy", saved)["kept"] == 110
    said("export", mine, tmp_path / "masks", "--policy", saved)
    assert {path.stem for path in (tmp_path / "masks").glob("*.png")} == set(session.view.names)
    printed = said("serve", mine, "--policy", saved, "--save-policy", saved, "--port", "0", status=2).err
    assert "hint: leave --save-policy out" in printed


def _calibrated(folder: Path) -> Path:
    """A store with human labels, and next to it what `calibrate` counts: a policy, curves and pairs."""
    label, sure = np.zeros((10, 10), np.uint8), np.full((10, 10), 0.95, np.float32)
    with LabelStoreWriter(folder / "raw", {"teacher": "t" * 64}) as writer:
        writer.add("a", label, sure, coarse=label)
    store = LabelStore.open(folder / "raw")
    (folder / "calibration").mkdir()
    from_threshold(0.9, store.classes).save(folder / "calibration" / "policy.json")
    code = store.read("a")[1]
    images = (CalibrationImage(name, name, label, code, label, label) for name in "pq")
    Curves.measure(images, store.classes, lineage=store.lineage).save(folder / "calibration" / "curves.json")
    np.savez_compressed(folder / "calibration" / "pairs.npz", pairs=StoreStatistics.open(store.path).pairs())
    return store.path


def test_damaged_pairs_of_calibrate_are_named(tmp_path: Path, inspect, capsys, said) -> None:
    store = _calibrated(tmp_path)
    pairs = tmp_path / "calibration" / "pairs.npz"
    arguments = [str(store), "--policy", str(pairs.with_name("policy.json"))]
    assert inspect(*arguments)["classes"][0]["precision_source"] == "coarse-corrected"
    whole, counts = pairs.read_bytes(), np.zeros((20, 19, 256), np.int64)
    damages = [whole[: len(whole) // 2], b"", b"no archive"]
    # A flip in every field of the archive's headers, and in the name, the shape and the numbers behind them.
    for at, bit in itertools.product(range(0, len(whole), 3), (0, 6)):
        damages.append(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    wrong = (counts[:19], counts[..., :255], counts[0], counts * 0.5, np.array(["text"]))
    for value in ({"other": counts}, *({"pairs": pairs_} for pairs_ in wrong)):
        np.savez_compressed(made := io.BytesIO(), **value)
        damages.append(made.getvalue())
    np.save(made := io.BytesIO(), counts)
    reported = 0
    for damaged in [*damages, made.getvalue()]:
        pairs.write_bytes(damaged)
        status = main(["inspect", *arguments, "--json"])
        out, err = capsys.readouterr()
        if status == 0:  # a field that says nothing about the numbers, such as a file's date
            assert json.loads(out)["classes"][0]["precision_source"] == "coarse-corrected"
            continue
        assert (status, out, err.count("\n")) == (4, "", 2)
        assert f"error: {pairs}: " in err
        assert "--single-item calibrate" in err
        reported += 1
    assert reported > len(damages) // 2
    pairs.write_bytes(b"")
    assert f"error: {pairs}: " in said("serve", *arguments, "--port", "0", status=4).err
