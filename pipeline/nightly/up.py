"""Start server, work pool, deployment `auto-label/nightly` and worker of a workspace (idempotent, no prompts).

`make orchestrate` calls this: `python -m pipeline.nightly.up --workspace DIR [--port N]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from hmsa_core.io.errors import ConfigError, HmsaError
from pipeline.nightly.reaper import nightly_lock
from pipeline.nightly.services import HOST, POOL, REPO, Services


def up(services: Services, *, wait_s: float = 300.0) -> list[str]:
    """Bring everything up; return what was done, one line each."""
    if not (services.workspace / "dvc.yaml").exists():
        raise ConfigError(
            f"{services.workspace}: not a workspace (no dvc.yaml)", hint="make one: autolabel init DIR --profile tiny"
        )
    described = _deployment_file(services)
    services.folder.mkdir(parents=True, exist_ok=True)
    env = services.environment()
    if not services.is_external and not services.is_running("server") and nightly_lock(services.workspace).is_free():
        # A worker gives up some time after its server is gone: a fresh one now is better than none in a minute. Before
        # the server is back, since a worker that sees it again takes the next run at once, and would take it along.
        services.stop("worker")
    said = [_server(services, env, wait_s)]
    if not services.is_external:
        services.remember()  # at once: what fails below must not hide which port it is on
    before = _deployed_workspace(services)
    _prefect(["work-pool", "create", POOL, "--type", "process", "--overwrite"], services, env)
    _prefect(["--no-prompt", "deploy", "--all", "--prefect-file", str(described)], services, env)
    said.append("deployment auto-label/nightly is registered")
    if before and before != str(services.workspace):
        said.append(f"it was for {before} and is for {services.workspace} now: a server has one (or -p workspace=DIR)")
    said += _reap(services, env)
    worker = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        POOL,
        "--name",
        f"worker-{services.port}",
        "--limit",
        "1",
        "--install-policy",
        "never",
    ]
    pid = services.start("worker", worker, env)
    said.append("worker runs already" if pid is None else f"worker started (process {pid})")
    said.append(f"web page: {services.api_url.removesuffix('/api')}")
    said.append("now: prefect deployment run auto-label/nightly")
    return said


def _reap(services: Services, env: Mapping[str, str]) -> list[str]:
    """Settle runs that a killed server or worker left behind: they would stay "Running" for ever."""
    command = [sys.executable, "-m", "pipeline.nightly.reaper", "--workspace", str(services.workspace)]
    if not services.is_external and not services.is_running("worker"):
        command.append("--pending")
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line]


def _server(services: Services, env: Mapping[str, str], wait_s: float) -> str:
    if services.is_external:
        services.wait_healthy(5.0)
        return f"using the server at {services.api_url}"
    if services.is_running("server"):
        services.check_same_port()
        services.wait_healthy(wait_s)
        return f"server runs already at {services.api_url}"
    services.check_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(services.port)]
    server_env = {k: v for k, v in env.items() if k != "PREFECT_API_URL"}
    pid = services.start("server", command, server_env)
    services.wait_healthy(wait_s)
    return f"server started at {services.api_url} (process {pid})"


def _deployed_workspace(services: Services) -> str | None:
    """Whose workspace the server's deployment is for; None when there is none yet."""
    try:
        with urllib.request.urlopen(f"{services.api_url}/deployments/name/auto-label/nightly", timeout=5) as answer:  # noqa: S310 - our own http URL
            return str(json.load(answer)["parameters"].get("workspace", "")) or None
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise HmsaError(f"{services.api_url}: {error}") from error


def _deployment_file(services: Services) -> Path:
    own, shipped = services.workspace / "prefect.yaml", REPO / "prefect.yaml"
    if not own.exists() and not shipped.exists():  # installed from a wheel
        raise ConfigError(
            f"{own}: no deployment there, and the code at {REPO} is no checkout, whose own would do",
            hint="copy prefect.yaml of the repository into the workspace",
        )
    return own if own.exists() else shipped


def _prefect(args: list[str], services: Services, env: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *args],
        env=dict(env),
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        tail = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise HmsaError(f"prefect {' '.join(args[:2])} failed against {services.api_url}: {tail}")


def main(argv: list[str] | None = None) -> int:
    """Command line of `make orchestrate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=None)
    args = parser.parse_args(argv)
    try:
        lines = up(Services(args.workspace, port=args.port))
    except HmsaError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
