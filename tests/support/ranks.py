"""Several ranks without torchrun: forks of the test process that meet over loopback (no import to wait for)."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable

from hmsa_core.config import RuntimeConfig
from hmsa_core.runtime.ranks import Ranks, start_ranks
from tests.support.faults import forked


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run_ranks(world: int, target: Callable[[int], None], *, timeout_s: float = 120.0) -> list[int]:
    """Run `target(rank)` in `world` forked processes and return their exit statuses (3 = an exception).

    The environment is torchrun's, so `start_ranks` finds it. What is still running after `timeout_s` is ended, and so
    is the rest soon after one has failed, as torchrun would; faulthandler then prints where each thread was.
    """
    import torch._dynamo  # noqa: F401 - an optimiser's first import, seconds: once here, not in every fork

    port = free_port()
    children = [_fork(rank, world, port, target) for rank in range(world)]
    status: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(status) < world:
        for rank, pid in enumerate(children):
            if rank in status:
                continue
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status[rank] = os.waitstatus_to_exitcode(code)
                if status[rank]:
                    deadline = min(deadline, time.monotonic() + 10.0)
        if time.monotonic() > deadline:
            for rank, pid in enumerate(children):
                if rank not in status:
                    os.kill(pid, signal.SIGABRT)
        time.sleep(0.01)
    return [status[rank] for rank in range(world)]


def on_ranks(world: int, job: Callable[[Ranks], object]) -> None:
    """Run `job` on each of so many ranks on the CPU; all must come to their end."""

    def main(_rank: int) -> None:
        ranks = start_ranks(RuntimeConfig(device="cpu", precision="fp32", threads=1))
        job(ranks)
        ranks.stop()

    assert run_ranks(world, main) == [0] * world


def _fork(rank: int, world: int, port: int, target: Callable[[int], None]) -> int:
    def work() -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
        target(rank)

    return forked(work)
