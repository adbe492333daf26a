"""Prefect's server and worker as services of one workspace: started once, found again, ended by lock.

State lies in WORKSPACE/.orchestrate: logs, Prefect's home (SQLite) and one lock file a service. The
service itself inherits the lock, so "is it running" is a question to the kernel, not to a pid file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError, LockedError
from hmsa_core.io.locks import FileLock

__all__ = ["HOST", "POOL", "REPO", "Services"]

HOST = "127.0.0.1"
POOL = "local-process"
REPO = Path(__file__).resolve().parents[2]
_MARK = "# Written by `make orchestrate`: lets the prefect command find this workspace's server.\n"


class Services:
    """Server, worker pool and deployment of one workspace on loopback."""

    def __init__(self, workspace: Path, *, port: int | None = None) -> None:
        self.workspace = workspace.resolve()
        self.folder = self.workspace / ".orchestrate"
        self.config_file = self.workspace / "prefect.toml"
        self._port = port

    @property
    def port(self) -> int:
        """The port given, or the one this workspace used last, or Prefect's own 4200."""
        if self._port is None:
            self._port = self._last_port(4200)
        return self._port

    def _last_port(self, default: int) -> int:
        saved = self.folder / "port.json"
        return int(atomic.read_json(saved)["port"]) if saved.exists() else default

    def check_same_port(self) -> None:
        """Refuse another port than the one on which this workspace's server runs."""
        used = self._last_port(self.port)
        if used != self.port:
            raise ConfigError(
                f"the server of {self.workspace} runs on port {used}, not {self.port}",
                hint="make orchestrate-stop first, or leave PORT out",
            )

    @property
    def api_url(self) -> str:
        """The API to use: PREFECT_API_URL when the user has one, else this workspace's server."""
        return os.environ.get("PREFECT_API_URL") or f"http://{HOST}:{self.port}/api"

    @property
    def is_external(self) -> bool:
        """Whether the user brought a server of their own."""
        return bool(os.environ.get("PREFECT_API_URL"))

    def environment(self) -> dict[str, str]:
        """Environment of every Prefect process of this workspace."""
        env = dict(os.environ)
        env.update(
            PREFECT_API_URL=self.api_url,
            PREFECT_HOME=str(self.folder / "prefect"),
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
            PREFECT_CLI_PROMPT="false",
            DVC_NO_ANALYTICS="1",
            AUTO_LABEL_ROOT=str(self.workspace),
            AUTO_LABEL_CODE=str(REPO),
        )
        env.setdefault("PREFECT_WORKER_QUERY_SECONDS", "5")
        # The flow's code and the console scripts of this environment, wherever the worker starts it from.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO), env.get("PYTHONPATH", "")]))
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        return env

    # -- one service ---------------------------------------------------------------------------

    def lock(self, name: str) -> FileLock:
        """The lock that a running service holds."""
        return FileLock(self.folder / f"{name}.lock", what=f"the {name} of {self.workspace}")

    def is_running(self, name: str) -> bool:
        """Whether the service holds its lock."""
        return not self.lock(name).is_free()

    def start(self, name: str, command: list[str], env: Mapping[str, str]) -> int | None:
        """Start a service in a session of its own; None when it runs already."""
        lock = self.lock(name)
        try:
            lock.acquire()
        except LockedError:
            return None
        try:
            with (self.folder / f"{name}.log").open("ab") as log:
                child = subprocess.Popen(
                    command,
                    env=dict(env),
                    cwd=self.workspace,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock.fd,),
                )
            # The child shares the lock's open file, so its pid may be written over ours.
            os.ftruncate(lock.fd, 0)
            os.pwrite(lock.fd, json.dumps({"pid": child.pid, "command": " ".join(command)}).encode(), 0)
        finally:
            lock.release()
        return child.pid

    def stop(self, name: str, *, grace_s: float = 10.0) -> bool:
        """End a service: SIGINT, then SIGTERM, then SIGKILL to its session; False when it did not run."""
        lock = self.lock(name)
        if lock.is_free():
            return False
        pid = int(json.loads(lock.path.read_text())["pid"])
        for sig, wait_s in ((signal.SIGINT, grace_s), (signal.SIGTERM, grace_s / 2), (signal.SIGKILL, 5.0)):
            _signal_group(pid, sig)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline:
                if lock.is_free():
                    return True
                time.sleep(0.1)
        raise HmsaError(f"the {name} (process {pid}) does not end", hint=f"kill -9 {pid}")

    # -- the server -----------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether the API answers."""
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as answer:  # noqa: S310 - our own http URL
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def check_port(self) -> None:
        """Refuse a port that somebody else listens on."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise ConfigError(
                    f"port {self.port} on {HOST} is taken by another program ({error.strerror})",
                    hint="choose another: make orchestrate PORT=4201, or set PREFECT_API_URL to use that server",
                ) from error

    def wait_healthy(self, timeout_s: float = 60.0) -> None:
        """Wait until the API answers; show the log's end when the server died."""
        deadline = time.monotonic() + timeout_s
        while not self.healthy():
            if not self.is_external and not self.is_running("server"):
                raise HmsaError(f"the Prefect server ended at start: {self.log_tail('server')}")
            if time.monotonic() > deadline:
                raise HmsaError(f"{self.api_url} did not answer within {timeout_s:.0f} s: {self.log_tail('server')}")
            time.sleep(0.25)

    def log_tail(self, name: str, lines: int = 3) -> str:
        """Last lines of a service's log, for a message."""
        path = self.folder / f"{name}.log"
        if not path.exists():
            return "no log"
        return " | ".join(path.read_text("utf-8", "replace").strip().splitlines()[-lines:]) + f" (log {path})"

    def remember(self) -> None:
        """Keep the port, and let a plain `prefect` command in the workspace find the server."""
        atomic.write_json(self.folder / "port.json", {"port": self.port})
        mine = self.config_file
        if mine.exists() and not mine.read_text("utf-8").startswith(_MARK):
            return  # the user's own settings stay as they are
        atomic.write_text(mine, f'{_MARK}[api]\nurl = "{self.api_url}"\n')

    def forget(self) -> None:
        """Remove the pointer that `remember` wrote."""
        mine = self.config_file
        if mine.exists() and mine.read_text("utf-8").startswith(_MARK):
            mine.unlink()


def _signal_group(pid: int, sig: int) -> None:
    try:
        os.killpg(pid, sig)
    except ProcessLookupError:
        return
