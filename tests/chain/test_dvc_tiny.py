"""The whole chain under real DVC, profile `tiny`: runs once, and afterwards only what a change demands."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hmsa_core.labels import LabelStore
from pipeline.stages import STAGES

pytestmark = pytest.mark.chain

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def _environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return env | {"PATH": f"{BIN}:{env['PATH']}", "PYTHONPATH": str(REPO), "DVC_NO_ANALYTICS": "1"}


@dataclass(frozen=True)
class Done:
    """A finished command."""

    text: str
    status: int
    seconds: float
    cpu_seconds: float

    @property
    def ran(self) -> list[str]:
        """Stages that DVC ran (or would run, with --dry)."""
        return re.findall(r"Running stage '([a-z-]+)'", self.text)


def _run(folder: Path, *command: str, status: int | None = 0) -> Done:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    text = done.stdout + done.stderr
    assert status is None or done.returncode == status, text[-3000:]
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Done(text, done.returncode, seconds, cpu)


def _dvc(folder: Path, *arguments: str, status: int | None = 0) -> Done:
    return _run(folder, sys.executable, "-m", "dvc", *arguments, status=status)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done, bool]:
    """A workspace after `init` and one `dvc repro`; how that went; whether the machine had nothing else to do."""
    idle = os.getloadavg()[0] < 0.7
    root = tmp_path_factory.mktemp("chain") / "ws"
    _run(REPO, "autolabel", "init", str(root), "--profile", "tiny")
    return root, _dvc(root, "repro"), idle


@pytest.fixture
def workspace(whole: tuple[Path, Done, bool], tmp_path: Path) -> Path:
    """A copy of the finished workspace to change."""
    return shutil.copytree(whole[0], tmp_path / "ws", symlinks=True)


def _set(workspace: Path, old: str, new: str) -> None:
    path = workspace / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _lock(workspace: Path) -> str:
    return (workspace / "dvc.lock").read_text()


def test_one_repro_runs_all_nine_stages_with_two_ranks(whole: tuple[Path, Done, bool]) -> None:
    root, done, idle = whole
    assert tuple(done.ran) == STAGES
    for stage in ("teacher-train", "auto-infer"):
        specs = [json.loads(p.read_text()) for p in (root / "work" / stage).glob("*/spec.json")]
        assert [s["config"]["runtime"]["ranks"] for s in specs] == [2]
    assert done.cpu_seconds < 150, f"{done.cpu_seconds:.0f} s of processor time"
    if idle:
        assert done.seconds <= 120, f"{done.seconds:.0f} s"


def test_everything_that_the_design_names_is_there(whole: tuple[Path, Done, bool]) -> None:
    root = whole[0]
    for path in (
        "data/index/target.parquet", "data/index/quarantine.parquet", "models/pretrain/model.json",
        "models/teacher/lineage.json", "models/student/model.safetensors", "models/control/model.json",
        "calibration/curves.json", "calibration/table.json", "calibration/policy.json", "labels/raw/manifest.json",
        "labels/final/centroids.parquet", "labels/final/statistics.json", "evaluation/metrics.json",
        "evaluation/per_class.json", "evaluation/verdict.json", "evaluation/confusions-teacher.npz",
        "evaluation/confusions-control.npz", "report/index.html", "plots/evaluate-confusion.png",
    ):  # fmt: skip
        assert (root / path).is_file(), path
    for stage in STAGES:
        assert (root / "metrics" / f"{stage}.json").is_file()
        assert json.loads((root / "work" / "times" / f"{stage}.json").read_text())["seconds"] > 0


def test_git_sees_only_the_lock_file_and_the_metrics(whole: tuple[Path, Done, bool]) -> None:
    changed = _run(whole[0], "git", "status", "--porcelain").text.splitlines()
    assert {line[3:].split("/")[0] for line in changed} <= {"dvc.lock", "metrics"}, changed


def test_a_second_repro_does_nothing_and_is_fast(workspace: Path) -> None:
    lock = _lock(workspace)
    runs = [_dvc(workspace, "repro") for _ in range(3)]
    assert all(done.ran == [] for done in runs)
    assert _lock(workspace) == lock
    assert min(done.cpu_seconds for done in runs) <= 2.0


def test_a_changed_threshold_trains_no_teacher_and_infers_nothing(workspace: Path) -> None:
    _set(workspace, "  threshold: policy", "  threshold: 0.5")
    assert _dvc(workspace, "repro").ran == ["pseudo-label", "student-train", "evaluate", "report"]
    policy = LabelStore.open(workspace / "labels" / "final", strict=True).manifest["policy"]
    assert set(policy["thresholds"].values()) == {"0.5"}


def test_a_threshold_off_the_grid_is_one_line_with_its_neighbours(workspace: Path) -> None:
    _set(workspace, "  threshold: policy", "  threshold: 0.8765")
    done = _dvc(workspace, "repro", "pseudo-label", status=None)
    assert done.status != 0
    assert "error: threshold 0.8765 is not on the grid of the confidence code; its neighbours are 0.87 and 0.88" in done.text


def test_a_changed_target_precision_measures_again_without_a_new_inference(workspace: Path) -> None:
    _set(workspace, "  target: 0.51", "  target: 0.6")
    before = {p: p.stat().st_mtime_ns for p in (workspace / "work" / "calibrate").rglob("shard-*.parquet")}
    done = _dvc(workspace, "repro", "pseudo-label")
    assert set(done.ran) <= {"calibrate", "pseudo-label"}
    assert "calibrate" in done.ran
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert json.loads((workspace / "calibration" / "policy.json").read_text())["settings"]["target"] == 0.6


def test_only_new_images_are_labelled(workspace: Path) -> None:
    extra = workspace / "data" / "demo" / "cityscapes" / "leftImg8bit" / "train_extra" / "augsburg"
    old = sorted(extra.glob("*_leftImg8bit.png"))[0]
    import cv2

    image = cv2.imread(str(old))
    assert image is not None
    cv2.imwrite(str(extra / "augsburg_000999_000019_leftImg8bit.png"), image[:, ::-1])
    shards = {p.name: p.read_bytes() for p in (workspace / "labels" / "raw").glob("shard-*.parquet")}
    done = _dvc(workspace, "repro", "auto-infer")
    assert done.ran == ["prepare", "auto-infer"], "neither teacher nor calibration depends on new images"
    after = {p.name: p.read_bytes() for p in (workspace / "labels" / "raw").glob("shard-*.parquet")}
    assert {name: after[name] for name in shards} == shards
    names = LabelStore.open(workspace / "labels" / "raw", strict=True).names()
    assert "augsburg_000999_000019" in names
    assert len(after) == len(shards) + 1


def test_deleted_outputs_come_back_from_the_run_cache_without_running(workspace: Path) -> None:
    lock = _lock(workspace)
    for name in ("work", "data/index", "models/pretrain", "models/teacher", "models/student", "models/control",
                 "calibration", "labels/raw", "labels/final", "evaluation", "report", "plots"):  # fmt: skip
        shutil.rmtree(workspace / name)
    (workspace / "dvc.lock").unlink()
    done = _dvc(workspace, "repro")
    assert done.ran == []
    assert done.text.count("is cached - skipping run") == len(STAGES)
    assert _lock(workspace) == lock
    assert not (workspace / "work" / "teacher-train").exists()


def test_the_same_parameters_give_the_same_bytes_without_any_progress_left(workspace: Path) -> None:
    lock = _lock(workspace)
    for stage in ("prepare", "teacher-pretrain", "calibrate", "pseudo-label"):
        shutil.rmtree(workspace / "work" / stage)
        assert _dvc(workspace, "repro", "--single-item", "--force", stage).ran == [stage]
    assert _lock(workspace) == lock


def test_metrics_and_plots_work_offline(workspace: Path) -> None:
    shown = json.loads(_dvc(workspace, "metrics", "show", "--json").text.splitlines()[-1])
    figures = shown[""]["data"]["metrics/evaluate.json"]["data"]
    assert set(figures["mean_iou"]) == {"teacher", "student", "control"}
    _run(workspace, "git", "add", "-A")
    _run(workspace, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "first")
    assert _dvc(workspace, "metrics", "diff", "--json").text.strip().splitlines()[-1] == "{}"
    _dvc(workspace, "plots", "show", "-o", "pictures")
    assert len(list((workspace / "pictures").rglob("*.png"))) >= 8
    assert "https://" not in (workspace / "pictures" / "index.html").read_text().split("<body>")[1]


def test_the_summary_shows_every_model_and_the_thresholds(whole: tuple[Path, Done, bool]) -> None:
    text = _run(REPO, "autolabel", "stage", "--summary", "--workspace", str(whole[0])).text
    for word in ("teacher", "control", "student", "student - control", "precision", "coverage", "road"):
        assert word in text


def test_a_damaged_raw_store_is_named_and_not_used(workspace: Path) -> None:
    shard = sorted((workspace / "labels" / "raw").glob("shard-*.parquet"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()  # a new file: the bytes of the old one are shared with work/ by a hard link
    shard.write_bytes(data)
    done = _run(workspace, "autolabel", "stage", "pseudo-label", status=4)
    assert shard.name in done.text
