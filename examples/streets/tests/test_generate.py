import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from examples.streets import City, DemoSpec, default_spec, generate
from examples.streets.spec import CALIBRATION_CITIES
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, LockedError
from hmsa_core.io.locks import FileLock

ONE = DemoSpec(size=(64, 32), cities=(City("train", "ulm", 1),))


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_second_call_changes_nothing_and_returns_at_once(tmp_path):
    out = tmp_path / "demo"
    generate(ONE, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    start = time.monotonic()
    generate(ONE, out)
    assert time.monotonic() - start < 0.5
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_changed_spec_replaces_everything(tmp_path):
    out = tmp_path / "demo"
    generate(ONE, out)
    generate(replace(ONE, cities=(City("val", "lindau", 1),)), out)
    assert all("lindau" in name for name in files(out) if name.endswith(".png"))


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="was not made by demo-data"):
        generate(ONE, out)
    assert files(out) == {"holiday.jpg"}


def test_an_empty_folder_is_filled_and_what_a_killed_run_left_is_cleared_away(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (tmp_path / ".demo.partial" / "cityscapes").mkdir(parents=True)
    (tmp_path / ".demo.partial" / "cityscapes" / "half.png").write_bytes(b"\x89PNG")
    generate(ONE, out)
    assert not (tmp_path / ".demo.partial").exists()
    assert "demo-data.json" in files(out)
    assert not any("half" in name for name in files(out))


def test_a_run_that_fails_keeps_the_old_set(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    generate(ONE, out)
    before = files(out)

    def refuse(source: Path, target: Path) -> None:
        if target == out and source.name.endswith(".partial"):
            raise OSError(28, "No space left on device", str(target))
        source.replace(target)

    monkeypatch.setattr(atomic.ops, "rename", refuse)
    with pytest.raises(Exception, match="no space left"):
        generate(replace(ONE, seed=9), out)
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".demo.lock", "demo"]


def test_two_runs_into_one_folder_do_not_mix(tmp_path):
    with FileLock(tmp_path / ".demo.lock"), pytest.raises(LockedError):
        generate(ONE, tmp_path / "demo")


@pytest.mark.fault
def test_a_killed_run_leaves_no_worker_behind(tmp_path):
    script = (
        "import sys; from pathlib import Path; from examples.streets import City, DemoSpec, generate\n"
        "if __name__ == '__main__':\n"
        "    generate(DemoSpec(size=(256, 128), cities=(City('train', 'ulm', 400),)), Path(sys.argv[1]), workers=2)\n"
    )
    main = tmp_path / "run.py"
    main.write_text(script)
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.Popen([sys.executable, str(main), str(tmp_path / "demo")], env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(tmp_path.glob(".demo.partial/cityscapes/gtFine/*/*/*.json"))) < 2:
        time.sleep(0.1)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.kill()
    run.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(_is_running(pid) for pid in children):
        time.sleep(0.05)
    assert len(children) >= 2
    assert not any(_is_running(pid) for pid in children)
    assert not (tmp_path / "demo").exists()


def _is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (16, 128)}, "outside 32..8192"),
        ({"supersample": 9}, "supersample is 9"),
        ({"clutter": 1.5}, "clutter is 1.5"),
        ({"cities": (City("training", "ulm", 1),)}, "split 'training'"),
        ({"cities": (City("train", "bad_honnef", 1),)}, "underscore"),
        ({"cities": (City("train", "ulm", 1), City("train", "ulm", 2))}, "twice"),
        ({"cities": (City("train", "ulm", 0),)}, "no pictures"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(ONE, **change)


def test_the_profiles_hold_what_the_chain_needs():
    demo, tiny = default_spec("demo"), default_spec("tiny")
    calibration = [city for city in demo.cities if city.name in CALIBRATION_CITIES]
    assert sum(city.sequences for city in calibration) >= 20
    assert sum(city.sequences * city.frames for city in calibration) >= 24
    assert demo.count("test") >= 80
    assert sum(city.sequences for city in demo.cities if city.split == "test") >= 40
    assert 100 <= demo.count("train_extra") <= 160
    assert tiny.count("train") == 24
    assert len({city.name for city in tiny.cities if city.split == "train"}) >= 4
    with pytest.raises(ConfigError, match="expected tiny or demo"):
        default_spec("camvid")


def test_planted_defects_are_what_they_claim_to_be(small_set):
    root = small_set / "cityscapes"
    planted = dict(line.split(": ", 1) for line in atomic.read_json(small_set / "demo-data.json")["planted"])
    assert len(planted) == 6
    with Image.open(root / planted["black one-channel image"]) as image:
        assert image.mode == "L"
        assert np.array(image).max() == 0
    assert "troisdorf" in planted["black one-channel image"]
    with pytest.raises(OSError, match="truncated"), Image.open(root / planted["truncated PNG"]) as image:
        image.load()
    alone = planted["label without image"]
    assert (root / alone).exists()
    image_path = alone.replace("gtCoarse/", "leftImg8bit/").replace("gtCoarse_labelIds", "leftImg8bit")
    assert not (root / image_path).exists()
    assert cv2.imread(str(root / planted["label ids out of range"]), cv2.IMREAD_UNCHANGED).max() == 77


def test_the_planted_copies_are_equal_and_almost_equal(small_set):
    root = small_set / "cityscapes"
    planted = dict(line.split(": ", 1) for line in atomic.read_json(small_set / "demo-data.json")["planted"])
    digests = {}
    for path in sorted((root / "leftImg8bit").rglob("*.png")):
        digests.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path)
    twins = [group for group in digests.values() if len(group) > 1]
    assert len(twins) == 1
    assert root / planted["exact duplicate image"] in twins[0]
    near = cv2.imread(str(root / planted["near-duplicate image"])).astype(int)
    differences = [
        np.abs(cv2.imread(str(path)).astype(int) - near).mean()
        for path in near_candidates(root, planted["near-duplicate image"])
    ]
    assert 0 < min(differences) < 6


def near_candidates(root, name):
    return [p for p in (root / name).parent.glob("*.png") if p != root / name and "_00090" not in p.name]
