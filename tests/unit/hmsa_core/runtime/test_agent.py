"""Which of several failed ranks is the cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from hmsa_core.runtime.agent import BACKEND, _cause
from tests.support.ranks import free_port


def _failed(*exits: tuple[int, int]) -> ChildFailedError:
    """Ranks 0, 1, ... with (exit code, second)."""
    failures = {}
    for rank, (code, second) in enumerate(exits):
        failure = ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=code, error_file="")
        failure.timestamp = second
        failures[rank] = failure
    return ChildFailedError("job", failures)


@pytest.mark.parametrize(
    ("exits", "cause"),
    [
        ([(1, 7), (-9, 7)], 1),  # rank 0 lost its connection to the killed one, within the same second
        ([(1, 7), (-9, 8)], 1),
        ([(-9, 7), (1, 7)], 0),
        ([(6, 7), (1, 7)], 0),
        ([(1, 7), (-15, 7)], 0),  # ended by the agent itself, since rank 0 had failed
        ([(1, 7), (-9, 60)], 0),  # did not end when asked
    ],
)
def test_a_killed_rank_is_the_cause_of_failures_within_the_same_second(
    exits: list[tuple[int, int]], cause: int
) -> None:
    rank, failure = _cause(_failed(*exits))
    assert (rank, failure.exitcode) == (cause, exits[cause][0])


@pytest.mark.chain
def test_an_agent_whose_other_node_does_not_come_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    where = [
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
        "--local-addr",
        "127.0.0.1",
        "--rdzv-conf",
        "join_timeout=2",
    ]
    command = ["-m", "hmsa_core.runtime.agent", "--nnodes", "2", "--rdzv-backend", BACKEND, "--rdzv-id", "x", *where]
    done = subprocess.run([sys.executable, *command, "-m", "this"], capture_output=True, text=True, timeout=120)
    reported = [line for line in done.stderr.splitlines() if "[c10d]" not in line]
    assert (done.returncode, reported) == (1, ["the other nodes did not come in time"])
    assert not list(tmp_path.iterdir())
