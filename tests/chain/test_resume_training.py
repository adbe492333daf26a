"""Training as real processes: torchrun, SIGKILL of the group, SIGTERM with loader workers, two agents.

A job that is to be hit is held at a planned operation first, so that the blow falls in the middle on a
machine of any speed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hmsa_core.io import sealed
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import TrainingError
from hmsa_core.spec import TrainSpec
from hmsa_core.training.state import StateStore
from tests.support.jobs import agent, errors_of, finish, last_logged_step, started
from tests.support.planted import Plan
from tests.support.processes import processes_of, wait_until_gone
from tests.support.ranks import free_port
from tests.support.training import assert_same_run, folder_bytes, train_spec, write_data
from tests.support.waiting import crowd, wait_for

pytestmark = pytest.mark.chain

TWO_RANKS = agent("--standalone", "--nproc-per-node", "2")
STEPS = 60  # 15 epochs of 8 crops, batch 2
EVERY = 7  # steps between saved states
FILES = 4  # of a state: weights, momentum, average, state.json; each is opened, written, synced, renamed once
OPERATIONS = ("open_new", "write", "fsync", "rename", "fsync_dir")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def spec_of(data: Path, work: Path, **changes: object) -> TrainSpec:
    return train_spec(data, work, epochs=15, checkpoint_every=EVERY, **changes)


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = spec_of(data, tmp_path_factory.mktemp("two"))
    assert finish(spec, *TWO_RANKS) == 0, errors_of(spec)
    return spec.work


@pytest.fixture(scope="module")
def one_rank(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = spec_of(data, tmp_path_factory.mktemp("one"))
    assert finish(spec) == 0, errors_of(spec)
    return spec.work


def after_states(count: int, marks: Path) -> Plan:
    """Rank 0 waits when it has saved so many states."""
    return Plan(marks, r"/state/step-\d+/state\.json$", "hold", "rename", at=count)


def kill_at_random(spec: TrainSpec, seed: int, marks: Path) -> int:
    """SIGKILL torchrun's process group at a random file operation of rank 0; returns the last step logged.

    Between two file operations nothing on disk changes but the log, so these are all the states that a kill
    can leave, from the first operation of the first saved state to the last one of the last but one.
    """
    rng = random.Random(seed)
    plan = Plan(marks, "/state/", "hold", rng.choice(OPERATIONS), at=rng.randint(1, FILES * (STEPS // EVERY)))
    with started(spec, *TWO_RANKS, plan=plan) as process:
        plan.wait(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_until_gone(spec.work)
    return last_logged_step(spec.work)


@pytest.mark.fault
@pytest.mark.once
def test_two_ranks_killed_at_a_random_operation_resume_to_the_same_bytes(
    data: Path, two_ranks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.SystemRandom().randrange(2**31)
    with capsys.disabled():
        os.write(1, f"[kill seed {seed}] ".encode())
    spec = spec_of(data, tmp_path / "work")
    step = kill_at_random(spec, seed, tmp_path / "marks")
    assert 1 <= step < STEPS, f"seed {seed}"
    assert not (spec.work / "model" / "model.json").exists(), f"seed {seed}, killed after step {step}"
    assert finish(spec, *TWO_RANKS) == 0, errors_of(spec)
    assert_same_run(spec.work, two_ranks, STEPS)


@pytest.mark.fault
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_sigterm_to_the_group_saves_the_state_and_exits_143_in_time(
    data: Path, one_rank: Path, tmp_path: Path, workers: int
) -> None:
    spec, plan = spec_of(data, tmp_path / "work", runtime__workers=workers), after_states(2, tmp_path / "marks")
    with started(spec, plan=plan) as process:
        plan.wait(process)
        if workers:
            assert len(processes_of(spec.work)) == 1 + workers, "loader workers run"
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 143
        assert time.monotonic() - start < 10.0
    wait_until_gone(spec.work)
    record = read_json(spec.work / "error.json")
    assert record["exit_code"] == 143
    saved = StateStore(spec.work / "state", key="").steps()[-1]
    assert f"at step {saved} of {STEPS}" in record["message"]
    assert 2 * EVERY <= saved < STEPS
    assert finish(spec) == 0, errors_of(spec)
    assert not (spec.work / "error.json").exists(), "a new start removes the old error"
    assert folder_bytes(spec.work / "model") == same_but_for_workers(one_rank, spec.work)


def same_but_for_workers(whole: Path, work: Path) -> dict[str, bytes]:
    """The uninterrupted run's folder, if its record differs in the number of workers alone."""
    found = (work / "model" / "model.json").read_bytes()
    expected = sealed.read(whole / "model" / "model.json")
    runtime = sealed.parse(found, "model.json")["lineage"]["config"]["runtime"]
    expected["lineage"]["config"]["runtime"]["workers"] = runtime["workers"]
    assert found == sealed.dump(expected)
    return folder_bytes(whole / "model") | {"model.json": found}


@pytest.mark.fault
def test_sigterm_to_torchrun_stops_all_ranks_at_one_step(data: Path, two_ranks: Path, tmp_path: Path) -> None:
    spec, plan = spec_of(data, tmp_path / "work", runtime__workers=1), after_states(1, tmp_path / "marks")
    with started(spec, *TWO_RANKS, plan=plan) as process:
        plan.wait(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    wait_until_gone(spec.work)
    assert read_json(spec.work / "error.json")["exit_code"] == 143
    assert finish(spec, *TWO_RANKS) == 0, errors_of(spec)
    assert folder_bytes(spec.work / "model") == same_but_for_workers(two_ranks, spec.work)


@pytest.mark.fault
def test_a_second_signal_ends_the_job_at_once(data: Path, tmp_path: Path) -> None:
    spec, plan = spec_of(data, tmp_path / "work", runtime__workers=2), after_states(1, tmp_path / "marks")
    with started(spec, plan=plan) as process:
        plan.wait(process)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 143
        assert time.monotonic() - start < 2.0
    wait_until_gone(spec.work)


@pytest.mark.fault
def test_a_killed_loader_worker_is_noticed_and_the_next_start_goes_on(
    data: Path, one_rank: Path, tmp_path: Path
) -> None:
    spec, plan = spec_of(data, tmp_path / "work", runtime__workers=2), after_states(1, tmp_path / "marks")
    with started(spec, plan=plan) as process:
        plan.wait(process)
        worker = next(pid for pid in processes_of(spec.work) if pid != process.pid)
        os.kill(worker, signal.SIGKILL)  # as the kernel does when memory runs out
        plan.release()
        # 6 where the loop hears of it, 1 where torch's signal handler speaks up outside of it.
        # Thirty seconds are a promise for a machine that has time; this one may be shared.
        assert process.wait(30 * crowd()) in (TrainingError.exit_code, 1)
    wait_until_gone(spec.work)
    message = read_json(spec.work / "error.json")["message"]
    assert "a loader process died" in message or f"DataLoader worker (pid {worker}) is killed" in message
    assert finish(spec) == 0, errors_of(spec)
    assert folder_bytes(spec.work / "model") == same_but_for_workers(one_rank, spec.work)


def _has_open(pid: int, path: Path) -> bool:
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # closed since
            if link.readlink() == path.resolve():
                return True
    return False


@pytest.mark.fault
def test_a_second_job_in_the_same_folder_waits_for_the_first_before_it_loads_torch(data: Path, tmp_path: Path) -> None:
    from hmsa_core.io.locks import FileLock

    spec = spec_of(data, tmp_path / "work")
    with FileLock(spec.work / "rank0.lock"), started(spec) as process:
        # The lock is taken before torch is imported; a dying owner is given 30 s, so look at the process.
        wait_for("it comes to its lock", lambda: _has_open(process.pid, spec.work / "rank0.lock"), 30)
        time.sleep(1.5)  # it goes on waiting, and does nothing else
        assert process.poll() is None
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert not (spec.work / "log.jsonl").exists()


def test_two_agents_on_loopback_equal_one_with_the_same_ranks(
    data: Path, two_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    spec = spec_of(data, tmp_path / "work")
    meeting = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d")
    both = agent(*meeting, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "test")
    with started(spec, *both, name="first.json") as first, started(spec, *both, name="second.json") as second:
        assert first.wait(120) == 0, (spec.work / "first.json.stderr").read_text()
        assert second.wait(30) == 0, (spec.work / "second.json.stderr").read_text()
    assert folder_bytes(spec.work / "model") == folder_bytes(two_ranks / "model")
    left = [path.name for path in (tmp_path / "temp").iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == [], "torch makes that one at import"
