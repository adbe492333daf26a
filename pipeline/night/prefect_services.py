"""Prefect's server, work pool, deployment `auto-label/nightly` and worker for one workspace.

`make orchestrate` runs `python -m pipeline.cli.services up`, `make orchestrate-stop` runs `... down`. Both may be
repeated and never prompt. WORKSPACE/.orchestrate holds logs, Prefect's home (SQLite), and a lock file each for server
and worker. A running service holds its lock. A pid file, as `prefect server start --background` writes, could be stale.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError, LockedError, needs_extra, one_line
from hmsa_core.io.locks import FileLock
from pipeline.jobs.provenance import REPOSITORY
from pipeline.night.reaper import nightly_lock, reap

HOST = "127.0.0.1"
POOL = "local-process"
_MARK = "# Written by `make orchestrate`: lets the prefect command find this workspace's server.\n"
_START_S = 300.0  # longest start of a server: one that migrates its database on a busy machine


class Services:
    """Server and worker of one workspace on loopback.

    Args:
        workspace: the folder.
        port: port of the server; default: the last port of this workspace, or Prefect's default 4200.
    """

    def __init__(self, workspace: Path, *, port: int | None = None) -> None:
        self.workspace = workspace.resolve()
        self.folder = self.workspace / ".orchestrate"
        self._port_file = self.folder / "port.json"
        self._pointer = self.workspace / "prefect.toml"
        self.last_port = int(atomic.read_json(self._port_file)["port"]) if self._port_file.exists() else None
        self.port = port or self.last_port or 4200
        self.is_external = bool(os.environ.get("PREFECT_API_URL"))  # the user runs the server
        self.api_url = os.environ.get("PREFECT_API_URL") or f"http://{HOST}:{self.port}/api"

    def environment(self) -> dict[str, str]:
        """Environment of every Prefect process of this workspace."""
        scripts = Path(sys.executable).parent
        paths = {"PYTHONPATH": str(REPOSITORY), "PATH": str(scripts)}  # this code and its console scripts
        return {
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            # One log holds many nights; Prefect leaves out the day.
            "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%Y-%m-%d %H:%M:%S",
            **os.environ,
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
            "DVC_NO_ANALYTICS": "1",
            "AUTO_LABEL_ROOT": str(self.workspace),
            "AUTO_LABEL_CODE": str(REPOSITORY),
            **{name: os.pathsep.join(filter(None, [path, os.environ.get(name)])) for name, path in paths.items()},
        }

    def lock(self, name: str) -> FileLock:
        """The lock that the running `server` or `worker` holds."""
        return FileLock(self.folder / f"{name}.lock", what=f"the {name} of {self.workspace}")

    def is_running(self, name: str) -> bool:
        """Whether the service holds its lock."""
        return not self.lock(name).is_free()

    def start(self, name: str, *arguments: str) -> int | None:
        """Start `prefect ARGUMENTS` in a new session; return its process id, or None if the service runs already."""
        lock, command = self.lock(name), [sys.executable, "-m", "prefect", *arguments]
        env = self.environment()
        if name == "server":
            del env["PREFECT_API_URL"]  # with it the server would call itself; its messages link to runs on its page
            env.setdefault("PREFECT_UI_URL", self.api_url.removesuffix("/api"))
        try:
            lock.acquire()
        except LockedError:
            return None
        try:
            if name == "server":  # before it listens: who interrupts this start finds its port later
                atomic.write_json(self._port_file, {"port": self.port})
            with (self.folder / f"{name}.log").open("ab") as log:
                child = subprocess.Popen(
                    command,
                    env=env,
                    cwd=self.workspace,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock.fd,),
                )
            # The child shares the lock's open file, so its pid may replace the pid of this process.
            os.ftruncate(lock.fd, 0)
            os.pwrite(lock.fd, json.dumps({"pid": child.pid, "command": " ".join(command)}).encode(), 0)
        finally:
            lock.release()
        return child.pid

    def stop(self, name: str) -> bool:
        """End a service: SIGINT, then SIGTERM, then SIGKILL to its session; False when it did not run."""
        lock = self.lock(name)
        if lock.is_free():
            return False
        pid = int(json.loads(lock.path.read_text())["pid"])
        for number, wait_s in ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline:
                if lock.is_free():
                    return True
                time.sleep(0.1)
        raise HmsaError(f"the {name} (process {pid}) does not end", hint=f"kill -9 {pid}")

    def healthy(self) -> bool:
        """Whether the API answers."""
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as answer:  # noqa: S310 - a fixed http URL
                return bool(answer.status == 200)
        except (OSError, ValueError):
            return False

    def wait_healthy(self, timeout_s: float) -> None:
        """Wait until the API answers; an error shows the end of the server's log."""
        deadline = time.monotonic() + timeout_s
        while not self.healthy():
            if not self.is_external and not self.is_running("server"):
                raise HmsaError(f"the Prefect server ended at start: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise HmsaError(f"{self.api_url} did not answer within {timeout_s:.0f} s: {self._log_tail()}")
            time.sleep(0.25)

    def _log_tail(self) -> str:
        path = self.folder / "server.log"
        lines = path.read_text("utf-8", "replace").strip().splitlines() if path.exists() else ["no log"]
        return f"{' | '.join(lines[-3:])} (log {path})"

    def check_port(self) -> None:
        """Raise ConfigError if the server runs on another port, or if another program listens on this port."""
        if self.is_running("server"):
            if self.last_port not in (None, self.port):
                raise ConfigError(
                    f"the server of {self.workspace} runs on port {self.last_port}, not {self.port}",
                    hint="make orchestrate-stop first, or leave PORT out",
                )
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise ConfigError(
                    f"port {self.port} on {HOST} is taken by another program ({error.strerror})",
                    hint="choose another (make orchestrate PORT=4201); if it is a Prefect server, set PREFECT_API_URL",
                ) from error

    def _owns_pointer(self) -> bool:
        """Whether prefect.toml is missing or written by this program; a user's file stays unchanged."""
        return not self._pointer.exists() or self._pointer.read_text("utf-8").startswith(_MARK)

    def remember(self) -> None:
        """Let a plain `prefect` command in the workspace find the server."""
        if self._owns_pointer():
            atomic.write_text(self._pointer, f'{_MARK}[api]\nurl = "{self.api_url}"\n')

    def forget(self) -> None:
        """Remove the pointer that `remember` wrote."""
        if self._owns_pointer():
            self._pointer.unlink(missing_ok=True)

    def prefect(self, *arguments: str) -> None:
        """Run a `prefect` command; a failure raises HmsaError with the last lines of its output."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        env = self.environment()
        result = subprocess.run(
            command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
        )
        if result.returncode:
            tail = " | ".join((result.stdout + result.stderr).strip().splitlines()[-3:])
            raise HmsaError(f"prefect {' '.join(arguments[:2])} failed against {self.api_url}: {tail}")

    def deployed_workspace(self) -> str:
        """Workspace of the server's deployment; "" before the first deployment."""
        address = f"{self.api_url}/deployments/name/auto-label/nightly"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - a fixed http URL
                return str(json.load(answer)["parameters"].get("workspace") or "")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            raise HmsaError(f"{self.api_url}: {error}") from error


def up(services: Services) -> list[str]:
    """Start the server and the worker, and register the deployment; return one line per action."""
    with needs_extra("nightly"):  # before anything is started
        import httpx  # noqa: F401
        import prefect  # noqa: F401
    if not (services.workspace / "dvc.yaml").exists():
        hint = "make one: autolabel init DIR --profile tiny"
        raise ConfigError(f"{services.workspace}: not a workspace (no dvc.yaml)", hint=hint)
    described, direct = _deployment_file(services), spare_loopback()
    services.folder.mkdir(parents=True, exist_ok=True)
    lines, before = [_server(services)], services.deployed_workspace()
    services.prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    services.prefect("deploy", "--all", "--prefect-file", str(described))
    lines.append("deployment auto-label/nightly is registered")
    if before not in ("", str(services.workspace)):
        lines.append(f"it was for {before} and is for {services.workspace} now: a server has one (or -p workspace=DIR)")
    lines += _reap(services)
    worker = ("worker", "start", "--pool", POOL, "--limit", "1", "--install-policy", "never")
    pid = services.start("worker", *worker, "--name", f"worker-{services.port}")
    lines.append("worker runs already" if pid is None else f"worker started (process {pid})")
    lines.append(f"web page: {services.api_url.removesuffix('/api')}")
    there = "" if Path.cwd() == services.workspace else f"cd {shlex.quote(str(services.workspace))} && "
    lines.append(f"now: {there}{direct}prefect deployment run auto-label/nightly")
    return lines


def spare_loopback() -> str:
    """Ask servers of this machine without a proxy, here and in processes started later; what a shell needs for it."""
    if not urllib.request.getproxies_environment():
        return ""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    value = ",".join(dict.fromkeys([*filter(None, given.split(",")), HOST, "localhost"]))
    os.environ.update(no_proxy=value, NO_PROXY=value)
    return "" if value == given else f"NO_PROXY={value} "


def _deployment_file(services: Services) -> Path:
    local, shipped = services.workspace / "prefect.yaml", REPOSITORY / "prefect.yaml"
    if not local.exists() and not shipped.exists():  # installed from a wheel
        raise ConfigError(
            f"{local}: no deployment there, and the code at {REPOSITORY} is no checkout, whose own would do",
            hint="copy prefect.yaml of the repository into the workspace",
        )
    return local if local.exists() else shipped


def _server(services: Services) -> str:
    if services.is_external:
        services.wait_healthy(5.0)
        return f"using the server at {services.api_url}"
    services.check_port()
    if not services.is_running("server") and nightly_lock(services.workspace).is_free():
        # A worker ends some time after its server is gone, together with its run. It is stopped before the new
        # server starts, since it would take the next run at once.
        services.stop("worker")
    pid = services.start("server", "server", "start", "--host", HOST, "--port", str(services.port))
    services.wait_healthy(_START_S)
    services.remember()
    where = services.api_url
    return f"server started at {where} (process {pid})" if pid else f"server runs already at {where}"


def _reap(services: Services) -> list[str]:
    """Settle runs that a killed server or worker left behind."""
    import httpx
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: services.api_url}):  # Prefect read the environment when imported
            pending = not services.is_external and not services.is_running("worker")
            return reap(services.workspace, pending=pending)
    except httpx.HTTPError as error:
        raise HmsaError(f"{services.api_url}: {one_line(error)}", hint="do it again when the server answers") from error


def down(services: Services) -> list[str]:
    """Stop the worker (its flow ends with it, and the stage saves its progress), then the server."""
    if not services.folder.is_dir() and not (services.workspace / "dvc.yaml").exists():
        raise ConfigError(f"{services.workspace}: not a workspace (no dvc.yaml)", hint="name the one that is running")
    lines = [f"{n} stopped" if services.stop(n) else f"{n} was not running" for n in ("worker", "server")]
    services.forget()
    return lines
