"""The launcher: outcomes of a job come home as errors of ours, lost ranks are started again, GPUs are locked."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.config import RuntimeConfig, TrainConfig
from hmsa_core.io import errors
from hmsa_core.io.locks import FileLock, device_lock_path
from hmsa_core.io.process import StopRequest
from hmsa_core.spec import FineData, InferSpec, Selection, TrainSpec
from pipeline.jobs import devices, launcher
from pipeline.jobs.nodes import Meeting
from tests.support.waiting import WAITS

RECORD = (
    "import json,sys,pathlib; w = pathlib.Path({work!r}); (w/'error.json').write_text({record!r}); sys.exit({status})"
)
LOSE_SOME = """
import json, os, pathlib, signal, sys
work = pathlib.Path({work!r})
n = int((work / "starts").read_text()) + 1 if (work / "starts").exists() else 1
(work / "starts").write_text(str(n))
if n <= {losses}:
    if {is_killed}: os.kill(os.getpid(), signal.SIGKILL)
    (work / "error.json").write_text(json.dumps({{"exit_code": 7, "message": "CUDA error: ECC", "hint": "dmesg"}}))
    sys.exit(7)
"""


def _spec(work: Path, **runtime: object) -> InferSpec:
    return InferSpec(
        work=work,
        roots={"target": work},
        teacher=work,
        selection=Selection(index=work / "i.parquet"),
        config={"runtime": {"device": "cpu", **runtime}},
    )


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(script: str, *, stop: StopRequest | None = None, **runtime: object) -> None:
        monkeypatch.setattr(launcher, "job_command", lambda *_: [sys.executable, "-S", "-c", script])
        launcher.run_job(_spec(tmp_path, **runtime), stop=stop or StopRequest())

    return run


def test_a_job_that_ends_well_leaves_its_spec_and_no_error(tmp_path: Path, run_script) -> None:
    (tmp_path / "error.json").write_text('{"exit_code": 2, "message": "of an earlier run"}')
    run_script("pass")
    assert json.loads((tmp_path / "spec.json").read_text())["job"] == "infer"
    assert not (tmp_path / "error.json").exists()


KINDS = "ConfigError InputError IntegrityError TrainingError LockedError NoSpaceError InterruptedRunError"


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in KINDS.split()])
def test_what_a_rank_reports_is_raised_with_its_class_message_and_hint(tmp_path: Path, run_script, kind) -> None:
    record = json.dumps({"exit_code": kind.exit_code, "message": "loss is not finite at step 7", "hint": "lower lr"})
    with pytest.raises(kind, match="loss is not finite at step 7") as caught:
        run_script(RECORD.format(work=str(tmp_path), record=record, status=kind.exit_code))
    assert caught.value.exit_code == kind.exit_code
    assert caught.value.hint == "lower lr"


def test_a_full_disk_is_reported_even_if_another_rank_wrote_the_record_or_none(tmp_path: Path, run_script) -> None:
    record = json.dumps({"exit_code": 1, "message": "connection closed by peer", "hint": ""})
    for script in (RECORD.format(work=str(tmp_path), record=record, status=28), "raise SystemExit(28)"):
        with pytest.raises(errors.NoSpaceError, match=f"no space left on device: the job in {tmp_path} ended"):
            run_script(script)


@pytest.mark.parametrize(
    ("is_killed", "error", "message"),
    [(True, errors.HmsaError, "died 3 times"), (False, errors.DeviceError, "CUDA error: ECC")],
)
def test_a_lost_rank_and_the_fault_of_a_gpu_are_started_again_a_bounded_number_of_times(
    tmp_path: Path, run_script, caplog, is_killed: bool, error: type[errors.HmsaError], message: str
) -> None:
    run_script(LOSE_SOME.format(work=str(tmp_path), losses=2, is_killed=is_killed))
    assert (tmp_path / "starts").read_text() == "3"
    assert "start 3 of 3 from the last checkpoint" in caplog.text
    assert is_killed or message in caplog.text
    (tmp_path / "starts").unlink()
    with pytest.raises(error, match=message):
        run_script(LOSE_SOME.format(work=str(tmp_path), losses=99, is_killed=is_killed))
    assert (tmp_path / "starts").read_text() == "3"


def test_a_reported_error_is_not_tried_again(tmp_path: Path, run_script) -> None:
    script = (
        f"import pathlib,sys; p = pathlib.Path({str(tmp_path / 'starts')!r});"
        "p.write_text(p.read_text() + 'x' if p.exists() else 'x'); sys.exit(2)"
    )
    with pytest.raises(errors.ConfigError, match="status 2"):
        run_script(script)
    assert (tmp_path / "starts").read_text() == "x"


def test_a_stop_request_reaches_the_job_and_is_reported_as_interrupted(tmp_path: Path, run_script) -> None:
    script = (
        "import signal,sys,time,pathlib\n"
        f"w = pathlib.Path({str(tmp_path)!r})\n"
        "def save(*_):\n (w/'saved').write_text('yes'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); (w/'up').write_text('1')\n" + WAITS
    )
    stop = StopRequest()

    def stop_when_up() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        stop.request(signal.SIGTERM)

    thread = threading.Thread(target=stop_when_up)
    thread.start()
    with pytest.raises(errors.InterruptedRunError, match="run again"):
        run_script(script, stop=stop)
    thread.join()
    assert (tmp_path / "saved").read_text() == "yes"


def test_a_job_has_a_process_group_of_its_own_which_ctrl_c_reaches_through_us_alone_and_pinned_threads(
    tmp_path: Path, run_script, monkeypatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    reported = "f\"{os.getpgrp() - os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ['MKL_NUM_THREADS']}\""
    run_script(f"import os, pathlib; pathlib.Path({str(tmp_path / 'said')!r}).write_text({reported})", threads=3)
    assert (tmp_path / "said").read_text() == "0 3 3"


def _training(work: Path, **runtime: Any) -> TrainSpec:
    fine = FineData(selection=Selection(index=work / "i.parquet"), centroids=work / "c.parquet")
    return TrainSpec(
        work=work,
        roots={"target": work},
        stage="teacher-train",
        fine=fine,
        config=TrainConfig(runtime=RuntimeConfig(device="cpu", **runtime)),
    )


FAULTS = """
import pathlib, resource
for _ in range(10):
    step = [bytearray(10 << 20) for _ in range(16)]; del step
pathlib.Path({out!r}).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
"""


def test_a_training_keeps_freed_memory_instead_of_faulting_it_in_at_each_step(tmp_path: Path, monkeypatch) -> None:
    script = FAULTS.format(out=str(tmp_path / "faults"))
    monkeypatch.setattr(launcher, "job_command", lambda *_: [sys.executable, "-S", "-c", script])
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    launcher.run_job(_training(tmp_path), stop=StopRequest())
    once = (160 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int((tmp_path / "faults").read_text()) < 3 * once, "ten steps of 160 MB each"


@pytest.mark.parametrize(
    ("flags", "precision", "warned"),
    [("fma avx2", "bf16", True), ("fma avx512_bf16", "bf16", False), ("fma avx2", "fp32", False)],
)
def test_a_training_in_bf16_on_a_processor_without_it_says_that_it_will_be_slow(
    tmp_path: Path, monkeypatch, caplog, flags: str, precision: str, warned: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(devices, "CPUINFO", cpuinfo)
    monkeypatch.setattr(launcher, "job_command", lambda *_: ["true"])
    launcher.run_job(_training(tmp_path, precision=precision), stop=StopRequest())
    assert ("bf16 is emulated" in caplog.text) is warned


def test_one_rank_is_a_plain_process_and_two_run_under_torchruns_agent(tmp_path: Path) -> None:
    alone = launcher.job_command(tmp_path / "s.json", RuntimeConfig(ranks=1), Meeting())
    assert alone[1:] == ["-m", "hmsa_core.job", str(tmp_path / "s.json")]
    two = launcher.job_command(tmp_path / "s.json", RuntimeConfig(ranks=2), Meeting())
    assert two[2] == "hmsa_core.runtime.agent"
    assert two[two.index("--nproc-per-node") + 1] == "2"
    assert two[two.index("--max-restarts") + 1] == "0"


NODES = """#!{python} -S
import pathlib, sys
work = pathlib.Path(sys.argv[-1]).parent
assert sys.argv[1:6] == [{python!r}, "-m", "pipeline.cli.main", "join", "--once"]
n = len(list(work.glob("start-*")))
(work / f"start-{{n}}").touch()
if n < {losses}:
    (work / "error.json").write_text('{{"exit_code": 7, "message": "node b ended with status 7", "hint": ""}}')
else:
    pathlib.Path(sys.argv[-1]).with_suffix(".done").touch()
"""


def test_a_lost_node_is_known_by_its_record_whatever_the_launcher_says(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("AUTOLABEL_RDZV_ENDPOINT", "10.0.0.1:29400")
    program = tmp_path / "on-all"
    program.write_text(NODES.format(python=sys.executable, losses=1))
    program.chmod(0o755)
    launcher.run_job(_spec(tmp_path, nodes=2, launcher=str(program)), stop=StopRequest())
    assert len(list(tmp_path.glob("start-*"))) == 2
    assert "a rank of infer was lost (node b ended with status 7); start 2 of 3" in caplog.text
    assert not list(tmp_path.glob("nodes-*.json"))
    program.write_text(NODES.format(python=sys.executable, losses=99))
    with pytest.raises(errors.DeviceError, match="node b ended with status 7"):
        launcher.run_job(_spec(tmp_path, nodes=2, launcher=str(program)), stop=StopRequest())
    (tmp_path / "error.json").unlink()
    with pytest.raises(errors.HmsaError, match="the job ended with status 0"):  # nothing was started
        launcher.run_job(_spec(tmp_path, nodes=2, launcher="true"), stop=StopRequest())


def test_the_status_of_a_nodes_agent_is_an_error_of_the_job_unless_it_was_stopped() -> None:
    assert launcher.fault_of(0, "x") is launcher.fault_of(143, "x") is None
    assert isinstance(launcher.fault_of(137, "x"), errors.DeviceError), "killed: may be started again"
    assert isinstance(launcher.fault_of(2, "x"), errors.ConfigError)


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho GPU-aaaa\necho GPU-bbbb\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_second_job_takes_the_other_gpu_and_a_third_is_told_who_holds_them(two_gpus) -> None:
    with devices.claim_devices("auto", 1) as first, devices.claim_devices("cuda", 1) as second:
        assert {first.devices, second.devices} == {("GPU-aaaa",), ("GPU-bbbb",)}
        assert first.environment == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}
        with pytest.raises(errors.LockedError, match=f"process {os.getpid()}"), devices.claim_devices("cuda", 1):
            pass
    assert FileLock(device_lock_path("GPU-aaaa")).is_free()


def test_the_gpus_are_those_of_cuda_visible_devices_and_asking_for_more_is_a_configuration_error(
    two_gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.visible_devices() == ["GPU-aaaa", "GPU-bbbb"]
    with pytest.raises(errors.ConfigError, match=r"runtime\.ranks is 3, but 2"), devices.claim_devices("auto", 3):
        pass
    for chosen, expected in (("1", ["GPU-bbbb"]), ("GPU-cccc", ["GPU-cccc"]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert devices.visible_devices() == expected
    with pytest.raises(errors.ConfigError, match="no GPU is visible"), devices.claim_devices("cuda", 1):
        pass
    with devices.claim_devices("auto", 2) as claim:
        assert claim.environment == {}
