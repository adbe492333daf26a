"""A rank that waits for ever is ended; one that works is not."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from hmsa_core.io.errors import DeviceError, HmsaError, device_fault
from hmsa_core.runtime import watchdog as watchdog_module
from hmsa_core.runtime.watchdog import Watchdog
from tests.support.ranks import run_ranks


@pytest.fixture(autouse=True)
def _in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(watchdog_module, "_GRACE_S", 0.1)


def ended(record: Path, *, minutes: float, beats: int, messages: list[HmsaError], wait_s: float = 0.6) -> list[int]:
    """Statuses with which a watchdog ended the process after so many beats (every 20 ms) and then silence."""
    statuses: list[int] = []
    over = threading.Event()

    def fail(error: HmsaError) -> int:
        messages.append(error)
        return error.exit_code

    def end(status: int) -> None:
        statuses.append(status)
        over.set()
        watchdog._over.set()  # the process would not live on

    with pytest.MonkeyPatch.context() as patch, Watchdog(minutes, record, fail) as watchdog:
        patch.setattr(os, "_exit", end)
        for _ in range(beats):
            watchdog.beat()
            time.sleep(0.02)
        over.wait(wait_s)
    return statuses


def test_a_rank_without_progress_ends_with_an_error_that_says_so(tmp_path: Path) -> None:
    messages: list[HmsaError] = []
    assert ended(tmp_path / "none", minutes=0.2 / 60, beats=1, messages=messages, wait_s=30.0) == [7]
    assert isinstance(messages[0], DeviceError)
    assert "no progress for 0.00333333 minutes" in messages[0].message


def test_a_rank_that_prepares_or_gets_on_is_left_alone(tmp_path: Path) -> None:
    assert ended(tmp_path / "none", minutes=0.2 / 60, beats=0, messages=[]) == [], "preparing may take its time"
    assert ended(tmp_path / "none", minutes=30.0, beats=5, messages=[]) == []


def test_a_rank_that_waits_for_one_that_has_failed_ends_soon_and_tells_nothing(tmp_path: Path) -> None:
    messages: list[HmsaError] = []
    (tmp_path / "error.json").write_text("{}")
    assert ended(tmp_path / "error.json", minutes=30.0, beats=1, messages=messages, wait_s=30.0) == [7]
    assert not messages


@pytest.mark.chain
def test_a_main_thread_that_waits_in_c_is_ended(tmp_path: Path) -> None:
    lock = threading.Lock()
    lock.acquire()

    def target(rank: int) -> None:
        with Watchdog(0.2 / 60, tmp_path / "none", lambda error: error.exit_code) as watchdog:
            watchdog.beat()
            lock.acquire()  # no signal handler would run here
        os._exit(3)

    assert run_ranks(1, target) == [7]


@pytest.mark.parametrize(
    ("text", "is_fault"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: unspecified launch failure\nmore", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True),
        ("NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error", True),
        ("[pair.cc:545 at gloo/transport/tcp] gloo/transport/tcp/pair.cc:545] Connection reset by peer", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: no kernel image is available for execution on the device", False),
        ("CUDA error: out of memory", False),
        ("size mismatch", False),
    ],
)
def test_faults_of_devices_are_told_from_mistakes(text: str, is_fault: bool) -> None:
    found = device_fault(RuntimeError(text))
    assert (found is not None) == is_fault
    assert found is None or (text.splitlines()[0] in found.message and found.exit_code == 7)
    assert device_fault(ValueError(text)) is None
