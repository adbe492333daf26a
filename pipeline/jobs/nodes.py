"""Jobs over several nodes: the rendezvous of the nodes, the command that starts them, and the network that they use.

The stage that runs a job writes `nodes-ID.json` into the job's work folder, on the disk that all nodes share, and holds
`nodes.lock` there while the job runs. A node takes part while the file exists and the lock is held
(`launcher.take_part`). Each start of a job has a new ID, so that no node joins an earlier start.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hmsa_core.config import RuntimeConfig
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import ConfigError
from hmsa_core.io.locks import FileLock
from hmsa_core.job import first_host

ENDPOINT = "AUTOLABEL_RDZV_ENDPOINT"
_RECORDS = "nodes-*.json"


@dataclass(frozen=True)
class Meeting:
    """Rendezvous of the agents of one start of a job: address and port, and an id that is used once."""

    host: str = "127.0.0.1"
    port: int = 0
    identity: str = "one-node"

    @classmethod
    def of(cls, record: Path) -> Meeting:
        """Read the meeting from the record that a stage has written."""
        host, port = read_json(record)["endpoint"]
        return cls(host, port, record.stem)

    def local_address(self) -> str:
        """This machine's address in the network of the meeting.

        Raises:
            ConfigError: the host has no address, or a loopback address, which other machines cannot reach.
        """
        try:
            family, _, _, _, target = socket.getaddrinfo(self.host, self.port or 1, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)  # a datagram socket sends nothing
                address = str(probe.getsockname()[0])
        except OSError as error:
            raise ConfigError(
                f"no way to the rendezvous {self.host}:{self.port} ({error.strerror})",
                hint=f"set {ENDPOINT}=ADDRESS:PORT to an address of one of the nodes that all of them can reach",
            ) from error
        if address == "::1" or address.startswith("127."):
            raise ConfigError(
                f"the rendezvous {self.host} is the loopback address {address} on {socket.gethostname()}",
                hint=f"set {ENDPOINT}=ADDRESS:PORT to an address that the other nodes can reach",
            )
        return address


def endpoint(nodes: int, env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the rendezvous: AUTOLABEL_RDZV_ENDPOINT, or the first node of a Slurm job.

    Raises:
        ConfigError: neither names one. A stage opens no port to a network that the user has not named.
    """
    if given := env.get(ENDPOINT):
        host, _, port = given.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"{ENDPOINT} is {given!r}: expected HOST:PORT")
        return host.strip("[]"), int(port)
    if listed := env.get("SLURM_JOB_NODELIST"):
        # Two jobs on one node must not meet: the port follows from the id.
        return first_host(listed), 20000 + int(env.get("SLURM_JOB_ID", "0")) % 40000
    raise ConfigError(
        f"runtime.nodes is {nodes}, but no rendezvous is given",
        hint=f"set {ENDPOINT}=HOST:PORT to an address of one of the nodes that all of them can reach",
    )


@contextmanager
def meetings(work: Path, nodes: int, env: Mapping[str, str]) -> Iterator[Callable[[], Path]]:
    """Yield a function that writes the record of the job's next start in `work`; nodes take part within the block."""
    where = endpoint(nodes, env)

    def forget() -> None:
        for path in work.glob("nodes-*"):
            path.unlink(missing_ok=True)

    def another() -> Path:
        forget()
        record = work / _RECORDS.replace("*", uuid.uuid4().hex)
        write_json(record, {"endpoint": where})
        return record

    with FileLock(work / "nodes.lock", what=f"the job in {work}", wait_s=1.0):  # a node that tests the lock holds it
        try:
            yield another
        finally:
            forget()


def done_mark(record: Path) -> Path:
    """File that marks that all nodes came to their end: some launchers drop the status."""
    return record.with_suffix(".done")


def is_open(record: Path) -> bool:
    """Whether the stage that wrote a record still runs this start of its job."""
    return record.exists() and not FileLock(record.parent / "nodes.lock").is_free()


def open_meetings(root: Path) -> list[Path]:
    """Records of the jobs over several nodes that run in a workspace."""
    return [record for record in sorted(root.glob(f"work/*/*/{_RECORDS}")) if is_open(record)]


def launch_prefix(runtime: RuntimeConfig, env: Mapping[str, str]) -> list[str]:
    """Words before the command of a node that start it on all nodes; none where users start the nodes.

    Raises:
        ConfigError: the launcher's command does not exist.
    """
    if runtime.launcher == "local":
        return []
    words = shlex.split(runtime.launcher)
    if not words or shutil.which(words[0], path=env.get("PATH")) is None:
        raise ConfigError(
            f"runtime.launcher is {runtime.launcher!r}: no such command here",
            hint="local, srun, or a command that starts what follows it once on each node",
        )
    if words != ["srun"]:
        return words
    # Without options srun gives a task one core, and waits for the other tasks when one has failed.
    cores = env.get("SLURM_CPUS_ON_NODE") or str(runtime.ranks * (runtime.thread_count + runtime.workers))
    count = str(runtime.nodes)
    options = {"nodes": count, "ntasks": count, "ntasks-per-node": "1", "cpus-per-task": cores}
    return ["srun", *(f"--{k}={v}" for k, v in options.items()), "--kill-on-bad-exit=1", "--input=none"]


def node_command(record: Path) -> list[str]:
    """Command of one node under a launcher."""
    return [sys.executable, "-m", "pipeline.cli.main", "join", "--once", os.fspath(record.resolve())]


def interface_of(address: str) -> str:
    """Name of the network interface that has an address; "" where it is not found."""
    import psutil

    rows = ((name.partition(":")[0], row.address) for name, found in psutil.net_if_addrs().items() for row in found)
    return next((name for name, its_address in rows if its_address.partition("%")[0] == address), "")
