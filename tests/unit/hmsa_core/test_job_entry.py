"""The entry of a job: what it refuses, what it leaves behind, whose error is kept, how it finds its rank."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmsa_core import job
from hmsa_core.config import InferConfig, RuntimeConfig
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import ConfigError, HmsaError, LockedError, NoSpaceError, TrainingError
from hmsa_core.io.process import StopRequest
from hmsa_core.job import apply_slurm, first_host
from hmsa_core.spec import EvaluateSpec, InferSpec, Selection, load_spec, save_spec
from tests.support.faults import faulty
from tests.support.training import train_spec, write_data
from tests.support.waiting import wait_for


@pytest.fixture
def quiet_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run `main` in the test process without changing its signals, logging or environment."""
    monkeypatch.setattr(job, "die_with_parent", lambda sig: None)
    monkeypatch.setattr(job, "_leave_on_signals", lambda: None)
    monkeypatch.setattr(job, "end_after_parent", lambda grace_s: None)
    monkeypatch.setattr(StopRequest, "install", lambda self: self)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    write_data(tmp_path / "data", images=2)
    spec = train_spec(tmp_path / "data", tmp_path / "work", epochs=1, epoch_samples=2)
    save_spec(tmp_path / "spec.json", spec)
    return tmp_path / "spec.json"


def test_a_training_spec_runs_with_its_own_threads_and_leaves_a_checkpoint(
    spec_file: Path, quiet_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert job.main([str(spec_file)]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "1", "set before torch is loaded"
    work = spec_file.parent / "work"
    assert (work / "model" / "model.json").exists()
    assert not (work / "error.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: python -m hmsa_core.job SPEC.json"),
        (["a.json", "b.json"], "usage: python -m hmsa_core.job SPEC.json"),
        (["--help"], "usage: python -m hmsa_core.job SPEC.json"),
        (["none.json"], "error: none.json: cannot read the job spec (No such file or directory)"),
    ],
)
def test_a_wrong_command_line_is_explained_in_one_line(
    arguments: list[str], message: str, quiet_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == [message]


@pytest.mark.parametrize(
    ("error", "status", "message", "hint"),
    [
        (TrainingError("the loss is not finite", hint="lower the rate"), 6, "the loss is not finite", "lower the rate"),
        (OSError(28, "No space left on device", "/work/x"), NoSpaceError.exit_code, "No space left", None),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero", None),
    ],
    ids=["ours", "full disk", "unexpected"],
)
def test_an_error_is_reported_and_recorded_with_its_status_and_an_unexpected_error_keeps_its_traceback(
    spec_file: Path,
    quiet_process: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    message: str,
    hint: str | None,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(job, "run_spec", fails)
    assert job.main([str(spec_file)]) == status
    record, printed = read_json(spec_file.parent / "work" / "error.json"), capsys.readouterr().err
    assert message.lower() in record["message"].lower()
    assert ("Traceback" in printed) == (hint is None)
    if hint:
        assert record == {"exit_code": status, "message": message, "hint": hint, "rank": 0}
        assert printed.splitlines() == [f"error: {message}", f"hint: {hint}"]


def test_the_first_rank_that_fails_wins_and_alone_tells_and_a_job_that_holds_no_folder_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = train_spec(tmp_path, tmp_path / "work")
    monkeypatch.setenv("RANK", "1")
    job._fail(TrainingError("the cause"), spec)
    monkeypatch.setenv("RANK", "0")
    job._fail(HmsaError("connection closed by peer"), spec)
    record = read_json(tmp_path / "work" / "error.json")
    assert (record["message"], record["rank"]) == ("the cause", 1)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["error.json"]
    assert capsys.readouterr().err == "error: the cause\n"
    (tmp_path / "work" / "error.json").unlink()
    monkeypatch.setenv(job.REPORTS, "record")
    assert job._fail(LockedError("in use by process 7"), spec) == 75, "another job holds the folder"
    assert capsys.readouterr().err == "error: in use by process 7\n"
    job._fail(TrainingError("the holder's own error"), spec)
    assert read_json(tmp_path / "work" / "error.json")["message"] == "the holder's own error"


def test_a_caller_who_reads_the_record_says_the_error_alone(
    spec_file: Path, quiet_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(job.REPORTS, "record")
    monkeypatch.setattr(job, "run_spec", lambda spec: (_ for _ in ()).throw(ConfigError("too wide", hint="narrow it")))
    assert job.main([str(spec_file)]) == 2
    assert capsys.readouterr().err == ""
    assert read_json(spec_file.parent / "work" / "error.json")["message"] == "too wide"
    assert job.main([str(spec_file.with_name("gone.json"))]) != 0
    assert "gone.json" in capsys.readouterr().err, "there is no record of a spec that cannot be read"


def test_without_room_for_a_record_the_error_is_still_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with faulty(1, errno.ENOSPC, persistent=True):
        assert job._fail(NoSpaceError("no space left on device"), train_spec(tmp_path, tmp_path / "work")) == 28
    assert capsys.readouterr().err == "error: no space left on device\n"


def test_each_kind_of_job_reaches_its_own_module(
    tmp_path: Path, quiet_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hmsa_core.inference.evaluation.evaluate_job as evaluate
    import hmsa_core.inference.folder.infer_job as infer

    called = []
    for module in (infer, evaluate):
        monkeypatch.setattr(module, "run", lambda spec, context: called.append((spec.job, context.ranks.is_main)))
    common = {"work": tmp_path, "roots": {}, "selection": Selection(index=tmp_path)}
    cpu = RuntimeConfig(device="cpu")
    job.run_spec(InferSpec(config=InferConfig(runtime=cpu), teacher=tmp_path, **common))
    job.run_spec(EvaluateSpec(settings=[{"name": "multi"}], runtime=cpu, checkpoint=tmp_path, **common))
    assert called == [("infer", True), ("evaluate", True)]


def test_a_real_process_refuses_a_bad_spec_without_loading_torch(tmp_path: Path) -> None:
    write_json(tmp_path / "spec.json", {"job": "train", "work": "w", "roots": {}, "stage": "x", "config": {"sede": 1}})
    code = (
        "import sys; sys.argv = ['job', sys.argv[1]]; from hmsa_core import job; s = job.main();"
        " print('torch' in sys.modules, s)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "spec.json")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "2"]
    assert done.stderr.startswith(f"error: {tmp_path / 'spec.json'}: config.sede: Extra inputs are not permitted")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.fault
def test_a_job_dies_with_the_process_that_started_it(spec_file: Path) -> None:
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-m', 'hmsa_core.job', sys.argv[1]]);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    (spec_file.parent / "work").mkdir()
    from hmsa_core.io.locks import FileLock

    # A held lock keeps the job waiting, torch not loaded, for as long as the test needs it.
    with FileLock(spec_file.parent / "work" / "rank0.lock"):
        parent = subprocess.Popen([sys.executable, "-c", code, str(spec_file)], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(
            "it catches SIGTERM", lambda: _catches_sigterm(child)
        )  # installed right after the request to the kernel
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
        wait_for("the end of the job", lambda: not Path(f"/proc/{child}").exists())


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


def test_specs_survive_a_round_trip(tmp_path: Path) -> None:
    spec = train_spec(tmp_path, tmp_path / "w", long_edge=2177, crop=(64, 128))
    save_spec(tmp_path / "s.json", spec)
    assert load_spec(tmp_path / "s.json") == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"global_batch": 3, "batch_per_rank": 2}}, "global_batch 3 is not a multiple"),
        ({"config": {"seed": "x"}}, 'config.seed: Input should be a valid integer, found "x"'),
        ({"config": {"runtime": {"device": "tpu"}}}, "config.runtime.device: Input should be 'auto', 'cpu' or 'cuda'"),
        ({"fine": None}, "fine: "),
        ({"job": "trian"}, "'trian'"),
        ({"wrok": 1}, "wrok: Extra inputs"),
    ],
)
def test_a_wrong_spec_names_the_key_and_what_was_expected(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(train_spec(tmp_path, tmp_path / "w").model_dump(mode="json") | change))
    with pytest.raises(ConfigError) as caught:
        load_spec(file)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{file}: ")
    value = {"job": "evaluate", "work": "w", "roots": {}, "checkpoint": "c", "selection": {"index": "i"}}
    file.write_text(json.dumps({**value, "settings": [{"name": "a"}, {"name": "a"}]}))
    with pytest.raises(ConfigError, match="different names"):
        load_spec(file)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-06,9],cpu1", "gpu03"),
        ("node1,node2", "node1"),
        ("a-b[1]", "a-b1"),
        ("x[1-2]-ib", "x1-ib"),
        ("solo", "solo"),
    ],
)
def test_the_first_host_of_a_slurm_node_list_is_found_and_an_empty_list_refused(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        first_host("")


SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}


def test_a_slurm_step_becomes_ranks() -> None:
    env = dict(SLURM)
    assert apply_slurm(env)
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["MASTER_ADDR"]) == ("5", "8", "1", "n1")
    assert 20000 <= int(env["MASTER_PORT"]) < 60000


@pytest.mark.parametrize("env", [SLURM | {"RANK": "0"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {}])
def test_torchrun_and_batch_scripts_are_left_alone(env: dict[str, str]) -> None:
    found = dict(env)
    assert not apply_slurm(found)
    assert found == env


LEAVES = """
import multiprocessing, signal, sys, time
from hmsa_core import job
from hmsa_core.io.process import die_with_parent

def worker(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    ready.set()
    time.sleep(100)

def main():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    context.Process(target=worker, args=(ready,), daemon=True).start()
    ready.wait()
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

job.main = main
job._run_and_leave()
"""


def test_an_error_from_outside_of_the_job_does_not_wait_for_workers_that_ignore_signals() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "DataLoader worker (pid 7)" in done.stderr
