"""The disk fills up in the middle of each stage: its own exit status, nothing lost, and success once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.workspace.table import STAGES
from tests.support.blows import GONE_WITHIN_S, steps
from tests.support.chain import Whole, environment, run
from tests.support.planted import Plan, planted
from tests.support.processes import receipts_of, wait_until_gone

pytestmark = [pytest.mark.chain, pytest.mark.fault]

NO_SPACE = 28
# Of each stage: its outputs; the file operation at which there is no room any more, in the middle of what it writes;
# and one while the finished results are put in place.
POINTS = {
    "prepare": (("data/index",), (r"/work/prepare/", 20), (r"/data/\.index\.", 4)),
    "teacher-pretrain": (("models/pretrain",), (r"/state/step-", 8), (r"/models/\.pretrain\.", 3)),
    # in the second state: the first one is whole
    "teacher-train": (("models/teacher",), (r"/state/step-", 20), (r"/models/\.teacher\.", 3)),
    "calibrate": (("calibration",), (r"/store/.*shard-", 9), (r"/\.calibration\.", 9)),
    # in each rank's second shard
    "auto-infer": (("labels/raw",), (r"/store/.*shard-", 17), (r"/labels/\.raw\.", 9)),
    "pseudo-label": (("labels/final", "labels/shift.json"), (r"/store/.*shard-", 17), (r"/labels/\.final\.", 9)),
    "student-train": (("models/student", "models/control"), (r"/state/step-", 8), (r"/models/\.control\.", 3)),
    "evaluate": (("evaluation",), (r"\.npz", 3), (r"/\.evaluation\.", 9)),
    "report": (("report",), (r"/report/", 3), (r"/metrics/report\.json", 1)),
}
SLOW = tuple(
    stage for stage in STAGES if stage not in ("prepare", "auto-infer")
)  # their files are written by the same code


def _bytes(root: Path, stage: str) -> dict[str, bytes]:
    found = [root / name for name in (*POINTS[stage][0], f"metrics/{stage}.json")]
    files = [p for path in found for p in ([path] if path.is_file() else sorted(path.rglob("*"))) if p.is_file()]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def _run(root: Path, stage: str, plan: Plan) -> tuple[int, str]:
    done = subprocess.run(
        ["autolabel", "stage", stage],
        cwd=root,
        env=planted(plan, environment()),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_every_stage_has_its_point() -> None:
    assert tuple(POINTS) == STAGES


@pytest.mark.parametrize("stage", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in STAGES])
def test_a_disk_that_fills_up_costs_nothing_that_was_there(workspace: Path, stage: str) -> None:
    before = _bytes(workspace, stage)
    assert before
    shutil.rmtree(workspace / "work" / stage)
    _, (match, at), placing = POINTS[stage]
    plan = Plan(workspace.parent / "marks", match, "ENOSPC", at=at)
    status, said = _run(workspace, stage, plan)
    assert status == NO_SPACE, said
    assert "no space left on device" in said
    assert said.count("\nhint: free space, run again") <= 2, "told by the rank and by the stage, once each"
    assert _bytes(workspace, stage) == before, "what is published stays until there is something better"
    kept = {path: path.stat().st_mtime_ns for path in receipts_of(workspace / "work" / stage)}
    plan.end()
    status, said = _run(workspace, stage, Plan(plan.marks, "nothing matches this", "ENOSPC"))
    assert status == 0, said
    assert _bytes(workspace, stage) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "acknowledged shards were made again"
    if stage == "teacher-train":
        assert steps(workspace, stage, "start") == [0, 20], "the run goes on from the last whole state"
    if stage in ("auto-infer", "pseudo-label"):
        assert kept

    plan = Plan(workspace.parent / "marks of placing", placing[0], "ENOSPC", at=placing[1])
    status, said = _run(workspace, stage, plan)
    assert status == NO_SPACE, said
    assert _bytes(workspace, stage) == before, "the last good results are gone before the new ones are there"
    plan.end()
    status, said = _run(workspace, stage, Plan(plan.marks, "nothing matches this", "ENOSPC"))
    assert status == 0, said
    assert _bytes(workspace, stage) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path, *, leave: int) -> Path:
    """Take all space but some bytes."""
    filler = folder / "filler"
    usage = shutil.disk_usage(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, usage.free - leave)
    return filler


def test_a_real_file_system_without_room(whole: Whole, small_disk: Path, tmp_path: Path) -> None:
    stage, root = "auto-infer", small_disk / "ws"
    shutil.copytree(whole.root, root, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    before = _bytes(root, stage)

    filler = _fill(small_disk, leave=50 << 20)
    done = run(root, "autolabel", "stage", stage, status=NO_SPACE)
    assert "auto-infer needs about" in done.text, "the estimate is compared before anything starts"
    filler.unlink()

    plan = Plan(tmp_path / "marks", r"/receipts/shard-\d+\.json$", "hold", "rename")
    shutil.rmtree(root / "work" / stage)
    with subprocess.Popen(
        ["autolabel", "stage", stage], cwd=root, env=planted(plan, environment()), stderr=subprocess.PIPE, text=True
    ) as process:
        plan.wait(process, 2)
        filler = _fill(small_disk, leave=0)
        plan.release()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == NO_SPACE, said
    assert "no space left on device" in said
    wait_until_gone(root, GONE_WITHIN_S)
    assert _bytes(root, stage) == before
    kept = {path: path.stat().st_mtime_ns for path in receipts_of(root / "work" / stage)}
    assert len(kept) == 2
    filler.unlink()
    run(root, "autolabel", "stage", stage)
    assert _bytes(root, stage) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
