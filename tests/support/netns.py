"""Network namespaces as nodes: each has an address of its own, on one bridge, and can be cut off."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# Starts what follows it once on each node, as mpirun or pdsh would; the worst status is its own.
LAUNCHER = """#!{python}
import signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):  # srun's options
    command.pop(0)
nodes = [subprocess.Popen(["ip", "netns", "exec", name, *command]) for name in {names!r}]
signal.signal(signal.SIGTERM, lambda *_: [node.terminate() for node in nodes])
sys.exit(max(abs(node.wait()) for node in nodes))
"""
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="nodes are network namespaces here: needs root and iproute2"
)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Nodes:
    """Namespaces `alN-0`, `alN-1`, ... at 10.77.0.1, .2, ... below the bridge of `alN-hub`."""

    def __init__(self, count: int) -> None:
        self._hub = f"al{os.getpid()}-hub"
        self.names = [f"al{os.getpid()}-{i}" for i in range(count)]

    def make(self) -> None:
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "bridge", "up")
        for i, name in enumerate(self.names):
            _ip("netns", "add", name)
            _ip("-n", self._hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self._hub, "link", "set", f"port{i}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{self.address(i)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")

    @staticmethod
    def address(i: int) -> str:
        return f"10.77.0.{i + 1}"

    def cut(self, i: int) -> None:
        """From now on nothing that node `i` sends arrives, nor anything sent to it; its own link stays up."""
        _ip("-n", self._hub, "link", "set", f"port{i}", "nomaster")

    def reconnect(self, i: int) -> None:
        _ip("-n", self._hub, "link", "set", f"port{i}", "master", "bridge")

    def processes(self, i: int) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.names[i]).split()]

    def addresses(self, i: int) -> set[str]:
        """Addresses, without ports, at which the processes of a node listen or are connected now."""
        rows: list[list[str]] = []
        for pid in self.processes(i)[:1]:
            text = Path(f"/proc/{pid}/net/tcp").read_text() + Path(f"/proc/{pid}/net/tcp6").read_text()
            rows = [line.split() for line in text.splitlines() if "local_address" not in line]
        found = {row[1].partition(":")[0] for row in rows}
        return {".".join(str(byte) for byte in reversed(bytes.fromhex(hexed)[-4:])) for hexed in found}

    def launcher(self, path: Path, count: int) -> Path:
        """A program that starts what follows it on the first nodes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LAUNCHER.format(python=sys.executable, names=self.names[:count]))
        path.chmod(0o755)
        return path

    def remove(self) -> None:
        _remove([*self.names, self._hub])


def _remove(names: list[str]) -> None:
    for name in names:
        with suppress(subprocess.CalledProcessError):
            for pid in _ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    for name in names:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", name)


@contextmanager
def network(count: int) -> Iterator[Nodes]:
    """So many nodes that reach each other; they and all that runs on them are gone afterwards."""
    known = re.findall(r"^(al(\d+)-\w+)", _ip("netns", "list"), re.MULTILINE)
    _remove([name for name, pid in known if not Path(f"/proc/{pid}").exists()])  # of a test run that was killed
    nodes = Nodes(count)
    try:
        nodes.make()
        yield nodes
    finally:
        nodes.remove()
