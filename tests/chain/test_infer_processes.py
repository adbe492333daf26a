"""Inference as real processes: stopped under torchrun, other numbers of processes, locales and hash seeds, the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hmsa_core.labels import LabelStore
from tests.support.inference import infer_spec, noise_image, save_model
from tests.support.jobs import REPO, agent, errors_of, finish, started
from tests.support.planted import Plan, planted
from tests.support.processes import wait_until_gone
from tests.support.training import folder_bytes, write_data

pytestmark = pytest.mark.chain

TWO_RANKS = agent("--standalone", "--nproc-per-node", "2")
SHARDS = 12
IMAGES = 2 * SHARDS
SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, images=IMAGES, size=(96, 128))
    save_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = infer_spec(data, tmp_path_factory.mktemp("one"), data / "model", scales=SCALES)
    assert finish(spec) == 0, errors_of(spec)
    return spec.work


def store_bytes(work: Path) -> dict[str, bytes]:
    return {k: v for k, v in folder_bytes(work / "store").items() if not k.endswith((".lock", ".tmp"))}


def receipts(work: Path) -> set[str]:
    """Shards that are acknowledged."""
    manifest_free = (work / "store").rglob("shard-*.json")
    return {path.stem for path in manifest_free}


def after_receipts(count: int, marks: Path) -> Plan:
    """Every rank waits when it has acknowledged so many shards; while it waits it holds those that it has claimed."""
    return Plan(marks, r"/receipts/shard-\d+\.json$", "hold", "rename", at=count)


@pytest.mark.fault
def test_sigterm_ends_both_ranks_within_seconds_and_the_rest_is_done_by_one(data, undisturbed, tmp_path):
    spec = infer_spec(data, tmp_path / "work", data / "model", scales=SCALES)
    plan = after_receipts(1, tmp_path / "marks")
    with started(spec, *TWO_RANKS, plan=plan) as process:
        plan.wait(process, 2)
        process.terminate()
        start = time.monotonic()
        assert process.wait(30) != 0
        assert time.monotonic() - start < 10
    wait_until_gone(spec.work)
    assert not list((spec.work / "store").rglob("*.tmp")), "an aborted shard leaves nothing behind"
    assert 2 <= len(receipts(spec.work)) < SHARDS
    assert finish(spec) == 0, errors_of(spec)
    assert store_bytes(spec.work) == store_bytes(undisturbed)


def label(images: Path, out: Path, *more: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, with the checkpoint next to the images."""
    given = {"--images": images, "--checkpoint": images.parent / "model", "--out": out, "--device": "cpu"}
    words = [str(word) for pair in given.items() for word in pair]
    command = [sys.executable, "-m", "pipeline.cli.main", "label", *words, "--images-per-shard", "2", *more]
    env = os.environ | {"PYTHONPATH": str(REPO)} | changes.pop("env", {})
    return subprocess.run(
        command, capture_output=True, timeout=120, env=env, check=False, encoding="utf-8", **{"cwd": REPO} | changes
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, one a name that no ASCII holds, and a checkpoint."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        path = folder / "straße" / ("münchen_000000_000019.png" if i == 5 else f"{i}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise_image(i, 40, 56)).save(path)
    save_model(folder / "model", scales=[0.5, 1.0, 2.0], flip=True)
    return folder


@pytest.fixture(scope="module")
def labelled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process makes."""
    out = tmp_path_factory.mktemp("labelled") / "store"
    done = label(photos / "straße", out)
    assert done.returncode == 0, done.stderr
    store = LabelStore.open(out, strict=True)
    assert len(store.names()) == 8
    assert store.row("münchen_000000_000019")["image_path"] == "straße/münchen_000000_000019.png"
    return folder_bytes(out)


@pytest.mark.parametrize("ranks", ["2", pytest.param("4", marks=pytest.mark.slow)])
def test_any_number_of_processes_makes_the_same_store(photos, labelled, tmp_path, ranks):
    done = label(photos / "straße", tmp_path / "store", "--ranks", ranks)
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "store") == labelled, "the manifest, too: it names the threads of a process"


def test_a_store_that_is_gone_on_with_on_more_processes_is_the_same(photos, labelled, tmp_path):
    plan = Plan(tmp_path / "marks", r"/receipts/shard-\d+\.json$", "exit", "rename", at=3)
    assert label(photos / "straße", tmp_path / "store", env=planted(plan, {})).returncode != 0
    assert 0 < len(receipts(tmp_path / "store.work")) < 4
    done = label(photos / "straße", tmp_path / "store", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "store") == labelled


def test_neither_locale_nor_hash_seed_nor_working_folder_changes_a_byte(photos, labelled, tmp_path):
    # Without the first two Python takes UTF-8 in place of the C locale.
    env = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONHASHSEED": "77"}
    script = "import sys; print(sys.getfilesystemencoding())"
    said = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | env, capture_output=True, check=True, text=True
    )
    assert said.stdout == "ascii\n", "the test tests something"
    done = label(photos / "straße", tmp_path / "store", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "store") == labelled


def test_a_python_that_may_not_read_utf_8_is_told_so(photos, tmp_path):
    label_here = ["label", "--images", ".", "--checkpoint", ".", "--out", str(tmp_path / "store")]
    command = [sys.executable, "-X", "utf8=0", "-m", "pipeline.cli.main", *label_here]
    env = os.environ | {"PYTHONPATH": str(REPO), "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(command, env=env, cwd=photos, capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: Python reads names of files as ascii\nhint: leave out -E, -I and -X utf8=0\n"


def test_the_code_makes_the_same_bytes_in_another_folder(photos, labelled, tmp_path):
    code = tmp_path / "another checkout"
    for package in ("hmsa_core", "pipeline"):
        shutil.copytree(REPO / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    # Python tells where it takes each module from.
    done = label(photos / "straße", tmp_path / "store", env={"PYTHONPATH": str(code), "PYTHONVERBOSE": "1"}, cwd=code)
    assert done.returncode == 0, done.stderr
    for module in (
        "pipeline/cli/label.py",
        "hmsa_core/inference/folder/infer_job.py",
        "hmsa_core/labels/store/shards.py",
    ):
        assert str(code / module) in done.stderr
        assert str(REPO / module) not in done.stderr
    assert folder_bytes(tmp_path / "store") == labelled
