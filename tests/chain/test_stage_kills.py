"""Kill the chain dvc -> stage -> torchrun -> ranks at any link: nothing survives, nothing is lost, same bytes.

No test here races with what it kills: the ranks are held at a planned operation (`tests.support.planted`)
until the blow falls, so it falls in the middle on a machine of any speed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.workspace.table import STAGES
from tests.support.blows import GONE_WITHIN_S, hit_all, kill_all, running, stage_pid, steps
from tests.support.chain import Whole, change_param, dvc, lock_file, set_params
from tests.support.planted import Plan
from tests.support.processes import receipts_of, wait_until_gone
from tests.support.waiting import assert_left_at_once, leave

pytestmark = [pytest.mark.chain, pytest.mark.fault, pytest.mark.timeout(900)]  # seconds; a busy machine is slow

TRAINING = "teacher-train"
LAST = 8  # steps of the teacher here; it saves its state after each
LABELLING = ("calibrate", "auto-infer", "pseudo-label")
RANKS = 2  # processes that write shards in each of these stages
OPERATIONS = 12  # of a shard: three files are opened, written, synced and renamed; then it is acknowledged
RECEIPT = r"/receipts/shard-\d+\.json$"


@pytest.fixture(scope="session")
def many_shards(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished workspace with one image a shard: there is always a middle to hit. Look, do not touch."""
    root = tmp_path_factory.mktemp("shards") / "ws"
    shutil.copytree(whole.root, root, symlinks=True)
    change_param(root, "images_per_shard: 4", "images_per_shard: 1")
    for stage in LABELLING:
        shutil.rmtree(root / "work" / stage)  # the receipts of the larger shards, which would be counted along
    assert dvc(root, "repro", "pseudo-label").ran == list(LABELLING)
    return root


@pytest.fixture(scope="session")
def many_teacher_states(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished workspace with a teacher of eight steps that has a state after each. Look, do not touch."""
    root = tmp_path_factory.mktemp("teacher") / "ws"
    shutil.copytree(whole.root, root, symlinks=True)
    changes = {"checkpoint_every": 1, "epochs": LAST // 4, "epoch_samples": 16, "validate_every": 0}
    set_params(root, {f"teacher_train.{key}": value for key, value in changes.items()})
    shutil.rmtree(root / "work" / TRAINING)
    assert dvc(root, "repro", TRAINING).ran == [TRAINING]
    assert max(steps(root, TRAINING)) == LAST
    return root


HITS: dict[str, Callable[[Path, int, int], None]] = {
    "SIGTERM to dvc": lambda _, dvc_pid, __: os.kill(dvc_pid, signal.SIGTERM),
    "SIGKILL to dvc": lambda _, dvc_pid, __: os.kill(dvc_pid, signal.SIGKILL),
    "SIGKILL to the stage": lambda _, __, stage: os.kill(stage, signal.SIGKILL),
    "SIGTERM to the group": lambda _, dvc_pid, __: os.killpg(dvc_pid, signal.SIGTERM),
    "SIGINT to the group": lambda _, dvc_pid, __: os.killpg(dvc_pid, signal.SIGINT),
    "SIGKILL to the group": lambda _, dvc_pid, __: os.killpg(dvc_pid, signal.SIGKILL),
    "SIGTERM to everyone": lambda workspace, _, __: hit_all(workspace, signal.SIGTERM),
    "SIGKILL to everyone": lambda workspace, _, __: kill_all(workspace),
}


def _saved(workspace: Path, stage: str) -> int:
    """Step of a training's last whole state."""
    states = (workspace / "work" / stage).glob("*/state/step-*/state.json")
    return max(int(path.parent.name.removeprefix("step-")) for path in states)


def _some(stages: Iterable[str], *kept: str) -> list[Any]:
    """These stages, of which `make test-full` kills the kept ones, and `make test-slow` all."""
    return [stage if stage in kept else pytest.param(stage, marks=pytest.mark.slow) for stage in stages]


ALIKE = ("SIGKILL to dvc", "SIGTERM to the group", "SIGINT to the group", "SIGKILL to the group", "SIGTERM to everyone")


@pytest.mark.parametrize("hit", [pytest.param(hit, marks=pytest.mark.slow) if hit in ALIKE else hit for hit in HITS])
def test_a_training_that_is_hit_anywhere_leaves_nobody_and_goes_on_to_the_same_bytes(
    many_teacher_states, tmp_path, hit
):
    workspace = shutil.copytree(many_teacher_states, tmp_path / "ws", symlinks=True)
    lock = lock_file(workspace)
    # Rank 0 is held right after its first state, so that even a SIGKILL has something to go on from. Who may save is
    # held at that state's first file instead: a rank that ended at once would leave nothing.
    file, operation = (r"state\.json$", "rename") if "KILL" in hit else ("", "open_new")
    plan = Plan(workspace.parent / "marks", r"/state/step-\d+/" + file, "hold", operation)
    with running(workspace, TRAINING, plan) as process:
        plan.wait(process)
        HITS[hit](workspace, process.pid, stage_pid(workspace, TRAINING))
        process.wait(timeout=GONE_WITHIN_S)
        wait_until_gone(workspace, GONE_WITHIN_S)
    saved = _saved(workspace, TRAINING)
    assert 1 <= saved < LAST, "the blow came after the last step: it proves nothing"
    assert dvc(workspace, "repro", "--single-item", "--force", TRAINING).ran == [TRAINING]
    assert steps(workspace, TRAINING, "start") == [0, saved], "steps that were saved are done again"
    assert lock_file(workspace) == lock


def _kill_a_labelling_stage(finished: Path, workspace: Path, stage: str, plan: Plan) -> None:
    """Hold the stage's writers as planned, SIGKILL everyone, run it again: compare with the undisturbed run."""
    shutil.copytree(finished, workspace, symlinks=True)
    lock, total = lock_file(workspace), len(receipts_of(workspace / "work" / stage))
    with running(workspace, stage, plan) as process:
        plan.wait(process, RANKS)
        kill_all(workspace)
        process.wait()
        wait_until_gone(workspace, GONE_WITHIN_S)
    kept = {path: path.stat().st_mtime_ns for path in receipts_of(workspace / "work" / stage)}
    assert RANKS <= len(kept) < total, "the blow came before the first or after the last shard: it proves nothing"
    begun = {path.stem for path in (workspace / "work" / stage).glob("*/store/shard-*.parquet")}
    assert len(begun) - len(kept) <= RANKS, "more than one shard a worker is done again"
    assert dvc(workspace, "repro", "--single-item", "--force", stage).ran == [stage]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished shards were made again"
    assert len(receipts_of(workspace / "work" / stage)) == total
    assert not list((workspace / "work" / stage).rglob("*.tmp")), "the dead writers' files are swept"
    assert lock_file(workspace) == lock


@pytest.mark.parametrize("stage", _some(LABELLING, "auto-infer"))
def test_a_labelling_stage_that_is_killed_keeps_its_finished_shards(many_shards, tmp_path, stage):
    plan = Plan(tmp_path / "marks", RECEIPT, "hold", "rename")
    _kill_a_labelling_stage(many_shards, tmp_path / "ws", stage, plan)


# The other stages: operations of their progress, and which of them is held at one time or another (not the first).
OTHERS = {
    "prepare": (r"/work/prepare/\w+/index/", 2, 30),
    "evaluate": (r"/work/evaluate/KEY/.*(npz|summary\.json|shard-)", 2, 12),
    "report": (r"/(work/report|report)/", 3, 30),  # new folders are made first
}
JUDGED = ("student", "control", "kept")  # jobs of evaluate that come after another one
# Trainings of few steps, which save after each: four operations of three files a state, from the second state to the
# one before the last (of 4 and 8).
SHORT = {"teacher-pretrain": (r"/state/step-\d+/", 13, 36), "student-train": (r"/state/step-\d+/", 13, 84)}


def _kill_at_an_operation(finished: Path, workspace: Path, stage: str, seed: int) -> str:
    """SIGKILL everyone at a random operation of a stage's progress; the content of dvc.lock before."""
    shutil.copytree(finished, workspace, symlinks=True)
    match, first, last = (OTHERS | SHORT | {TRAINING: SHORT["student-train"]})[stage]
    rng = random.Random(f"{stage} {seed}")
    if stage == "evaluate":
        keys = json.loads((finished / "work/evaluate/keys.json").read_text())
        match = match.replace("KEY", keys[rng.choice(JUDGED)][-1])
    plan = Plan(workspace.parent / f"marks-{seed}", match, "hold", at=rng.randint(first, last))
    with running(workspace, stage, plan) as process:
        plan.wait(process)
        kill_all(workspace)
        process.wait()
        wait_until_gone(workspace, GONE_WITHIN_S)
    return lock_file(workspace)


def _assert_the_next_run_gives_the_same_bytes(workspace: Path, stage: str, lock: str) -> None:
    assert dvc(workspace, "repro", "--single-item", "--force", stage).ran == [stage]
    assert not list((workspace / "work" / stage).rglob("*.tmp")), "the dead writers' files are swept"
    assert lock_file(workspace) == lock


def _kill_another_stage(finished: Path, workspace: Path, stage: str, seed: int) -> None:
    lock = _kill_at_an_operation(finished, workspace, stage, seed)
    assert any(p.is_file() for p in (workspace / "work" / stage).rglob("*")), (
        "the blow came before anything was written"
    )
    assert not (workspace / f"metrics/{stage}.json").exists(), "the blow came after the last file"
    kept = {path: path.stat().st_mtime_ns for path in _judged(workspace)}
    if stage == "evaluate":
        assert 1 <= len(kept) < len(_judged(finished)), "the blow came before the first or after the last model"
    _assert_the_next_run_gives_the_same_bytes(workspace, stage, lock)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "models were judged again"


def _judged(workspace: Path) -> list[Path]:
    """Jobs of evaluate that are done."""
    return list((workspace / "work/evaluate").glob("*/summary.json"))


def _kill_a_short_training(finished: Path, workspace: Path, stage: str, seed: int) -> None:
    lock = _kill_at_an_operation(finished, workspace, stage, seed)
    saved = _saved(workspace, stage)
    assert not list((workspace / "work" / stage).glob("*/model/model.json")), "the blow came after the last step"
    _assert_the_next_run_gives_the_same_bytes(workspace, stage, lock)
    assert max(steps(workspace, stage, "start")) == saved >= 1, "steps that were saved are done again"


def _kill(request: pytest.FixtureRequest, folder: Path, stage: str, seed: int) -> None:
    """Kill a stage at a time that the seed tells, and let it go on to the same bytes."""
    whole: Whole = request.getfixturevalue("whole")
    if stage in LABELLING:
        # Any file operation from each writer's first receipt to its second: the writers have three or more.
        at = random.Random(f"{stage} {seed}").randint(OPERATIONS, 2 * OPERATIONS)
        plan = Plan(folder / f"marks-{seed}", "/store/.*shard-", "hold", at=at)
        _kill_a_labelling_stage(request.getfixturevalue("many_shards"), folder / f"ws-{seed}", stage, plan)
    elif stage in OTHERS:
        _kill_another_stage(whole.root, folder / f"ws-{seed}", stage, seed)
    else:
        finished = request.getfixturevalue("many_teacher_states") if stage == TRAINING else whole.root
        _kill_a_short_training(finished, folder / f"ws-{seed}", stage, seed)


@pytest.mark.parametrize("stage", _some([*OTHERS, *SHORT], "prepare", "student-train"))
def test_another_stage_that_is_killed_goes_on_to_the_same_bytes(request, tmp_path, stage):
    _kill(request, tmp_path, stage, 0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("stage", STAGES)
def test_fifty_kills_of_a_stage_lose_nothing(request, tmp_path, stage):
    for seed in range(50):
        _kill(request, tmp_path, stage, seed)
        shutil.rmtree(tmp_path / f"ws-{seed}")


def test_a_second_run_of_a_stage_leaves_at_once_and_names_the_first(many_teacher_states, tmp_path):
    workspace = shutil.copytree(many_teacher_states, tmp_path / "ws", symlinks=True)
    lock = lock_file(workspace)
    plan = Plan(workspace.parent / "marks", r"/state/step-\d+/state\.json$", "hold", "rename")
    with running(workspace, TRAINING, plan) as process:
        plan.wait(process)
        first = stage_pid(workspace, TRAINING)
        tries = [leave(workspace, "autolabel", "stage", TRAINING) for _ in range(3)]
        assert_left_at_once(tries)
        assert all(f"process {first}" in done.text for done in tries)
        other = dvc(workspace, "repro", "--single-item", "--force", TRAINING, status=None)
        assert other.status != 0
        assert str(process.pid) in other.text, "DVC names the first run, too"
        plan.release()
        assert process.wait(timeout=900) == 0
    assert lock_file(workspace) == lock
