"""What is published is never written again: not by our stages, not through a link into DVC's cache; and it travels."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from hmsa_core.labels import LabelStore
from pipeline.workspace.table import STAGES
from tests.support.chain import Whole, add_images, change_param, dvc, lock_file, run
from tests.support.inotify import Watch

pytestmark = pytest.mark.chain

OUTPUTS = (
    "data/index",
    "models/pretrain",
    "models/teacher",
    "models/student",
    "models/control",
    "calibration",
    "labels",
    "evaluation",
    "report",
    "metrics",
    "plots",
)


def _copy(whole: Whole, folder: Path) -> Path:
    """A copy in which names of one file stay names of one file."""
    subprocess.run(["cp", "-a", str(whole.root), str(folder)], check=True)
    return folder


def _files(root: Path, *folders: str) -> list[Path]:
    return [p for folder in folders for p in sorted((root / folder).rglob("*")) if p.is_file() and not p.is_symlink()]


def _damaged_cache_files(root: Path) -> list[str]:
    """Files of DVC's cache whose content is not what their name says."""
    cache = root / ".dvc/cache/files/md5"
    files = [p for p in sorted(cache.rglob("*")) if p.is_file()]
    assert len(files) > 50
    wrong = []
    for path in files:
        name = (path.parent.name + path.name).removesuffix(".dir")
        if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != name:
            wrong.append(str(path))
    return wrong


@pytest.mark.parametrize(
    "finished",
    [
        ("teacher-pretrain", "teacher-train", "auto-infer", "pseudo-label"),
        pytest.param(STAGES[1:], marks=pytest.mark.slow),
    ],
    ids=["trainings and labels", "every stage"],
)
def test_no_run_opens_a_published_file_for_writing(whole: Whole, tmp_path: Path, finished: tuple[str, ...]) -> None:
    root = _copy(whole, tmp_path / "ws")
    for stage in finished:  # DVC has put its own copies in their place: publish again, as a run without DVC does
        run(root, "autolabel", "stage", stage)
    published = _files(root, *OUTPUTS)
    shared = [p for p in published if p.stat().st_nlink > 1]
    assert {p.suffix for p in shared} >= {".parquet", ".safetensors"}, "results are hard links of progress"
    with Watch([*published, *_files(root, ".dvc/cache/files")]) as watch:
        add_images(root)
        change_param(root, "  threshold: policy", "  threshold: 0.5")
        assert dvc(root, "repro", "pseudo-label").ran == ["prepare", "auto-infer", "pseudo-label"]
        for stage in finished:
            run(root, "autolabel", "stage", stage)
        for folder in ("models/student", "models/teacher"):
            version = run(root, "autolabel", "models", "register", folder).text.split()[-1]
            run(root, "autolabel", "models", "promote", version)
        run(root, "autolabel", "models", "rollback")
        assert watch.written() == set()
        (root / "models/teacher/model.json").open("ab").close()
        assert watch.written() == {root / "models/teacher/model.json"}, "the watch would have seen it"


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("hardlink", "symlink")])
def test_linked_caches_stay_whole_whatever_runs_again(whole: Whole, tmp_path: Path, kind: str) -> None:
    root = _copy(whole, tmp_path / "ws")
    lock = lock_file(root)
    dvc(root, "config", "cache.type", kind)
    for stage in ("auto-infer", "pseudo-label"):
        assert dvc(root, "repro", "--single-item", "--force", stage).ran == [stage]
    shard = sorted((root / "labels/raw").glob("shard-*.parquet"))[0]
    assert shard.is_symlink() if kind == "symlink" else shard.stat().st_nlink > 1
    assert lock_file(root) == lock
    add_images(root)
    change_param(root, "  threshold: policy", "  threshold: 0.5")
    assert dvc(root, "repro", "pseudo-label").ran == ["prepare", "auto-infer", "pseudo-label"]
    assert LabelStore.open(root / "labels/raw", strict=True).verify() == []
    assert LabelStore.open(root / "labels/final", strict=True).verify() == []
    assert _damaged_cache_files(root) == []


def test_label_stores_travel_by_push_and_pull(whole: Whole, tmp_path: Path) -> None:
    root = _copy(whole, tmp_path / "ws")
    lock = lock_file(root)
    before = {p.relative_to(root): p.read_bytes() for p in _files(root, "labels/raw", "labels/final")}
    dvc(root, "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    dvc(root, "push", "labels/raw", "labels/final")
    for gone in (".dvc/cache", "labels/raw", "labels/final", "work"):
        shutil.rmtree(root / gone)
    dvc(root, "pull", "labels/raw", "labels/final")
    assert {p.relative_to(root): p.read_bytes() for p in _files(root, "labels/raw", "labels/final")} == before
    for name in ("raw", "final"):
        assert LabelStore.open(root / "labels" / name, strict=True).verify() == []
    assert lock_file(root) == lock
    status = dvc(root, "status", "--json", "auto-infer", "pseudo-label").text
    assert "labels/shift.json" in status, "DVC sees what was not pulled"
    assert "labels/raw" not in status
    assert "labels/final" not in status, "what came back is what the lock file names"
