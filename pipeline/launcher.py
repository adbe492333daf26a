"""Start a job of `hmsa_core.runtime` as a process or under torchrun, and bring its outcome home.

The chain is dvc -> `autolabel stage` -> agent (torchrun) -> ranks. Each asks the kernel for a signal when its parent
dies, and passes a stop request down. Thread counts are pinned, because they change the last bits of a result. Every
GPU in use is locked. A rank that a signal killed is started again from its last checkpoint, a bounded number of
times; an error that the rank explained is raised here as it is.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from hmsa_core.config import RuntimeConfig
from hmsa_core.io import errors
from hmsa_core.io.atomic import read_json
from hmsa_core.io.process import StopRequest, run_child
from hmsa_core.job import REPORTS
from hmsa_core.spec import JobSpec, runtime_of, save_spec
from pipeline.devices import claim_devices, cpu_emulates_bf16

RELAUNCHES = 2
_LOG = logging.getLogger(__name__)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# glibc gives freed memory back to the kernel at every step and faults it in again at the next: a fifth of the time of
# a narrow network (research/bench/bench_train_step.py with and without). 32 MiB is the most that all versions take.
KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
# Every error of ours by exit status; subclasses share their parent's, so the parent is what comes back.
_KINDS: list[type[errors.HmsaError]] = [*errors.HmsaError.__subclasses__(), errors.HmsaError]
_BY_STATUS = {kind.exit_code: kind for kind in _KINDS}


def run_job(spec: JobSpec, *, stop: StopRequest, relaunches: int = RELAUNCHES) -> None:
    """Run a job to its end; its results lie below `spec.work` afterwards.

    Raises:
        HmsaError: what the job itself reported. The class belongs to its exit status: InterruptedRunError when `stop`
            was set, LockedError when a GPU is taken. Also raised when a rank died more often than `relaunches` times.
    """
    work = Path(spec.work)
    path = work / "spec.json"
    save_spec(path, spec)
    runtime = runtime_of(spec)
    with claim_devices(runtime.device, runtime.ranks) as claim:
        environment = job_environment(runtime, os.environ) | claim.environment
        if spec.job == "train" and not claim.devices:
            environment = KEEP_HEAP | environment  # what the user has set stays
            if runtime.precision == "bf16" and cpu_emulates_bf16():
                _LOG.warning(
                    "%s: bf16 is emulated on this processor and slower than fp32; set runtime.precision of this "
                    "training to fp32 in params.yaml",
                    spec.stage,
                )
        for attempt in range(relaunches + 1):
            if stop.is_set():
                raise errors.InterruptedRunError("stopped before the job was started")
            status = _run_once(path, runtime, stop, environment, claim.fds)
            if status == 0:
                return
            fault = _raise_reported(work, status, stop)
            if attempt == relaunches:
                break
            _LOG.warning(
                "a rank of %s was lost (%s); start %d of %d from the last checkpoint",
                spec.job,
                fault.message if fault else f"status {status}",
                attempt + 2,
                relaunches + 1,
            )
    if fault:
        raise fault
    raise errors.HmsaError(
        f"the {spec.job} job died {relaunches + 1} times without an error of its own (last status {status})",
        hint=f"a killed rank often means too little memory: see {work / 'log.jsonl'} and the kernel's log",
    )


def _run_once(
    spec: Path, runtime: RuntimeConfig, stop: StopRequest, environment: Mapping[str, str], fds: tuple[int, ...]
) -> int:
    (spec.parent / "error.json").unlink(missing_ok=True)
    command = job_command(spec, runtime, os.environ)
    if runtime.nodes > 1:
        _LOG.info("start the same command on the other nodes: %s", shlex.join(command))
    return run_child(command, stop=stop, env=environment, pass_fds=fds, own_group=True)


def _raise_reported(work: Path, status: int, stop: StopRequest) -> errors.DeviceError | None:
    """Raise what the job said about its end; return when it may be started again: it was killed, or a GPU failed."""
    if stop.is_set():
        raise errors.InterruptedRunError("stopped on request; progress is saved, run again to go on")
    record = work / "error.json"
    told = read_json(record) if record.exists() else {}
    code = int(told.get("exit_code", status))
    was_killed = status < 0 or (status > 128 and status != errors.InterruptedRunError.exit_code)
    if was_killed:
        return None  # ranks that torchrun stopped afterwards may have left a record: it is not the cause
    if status == errors.NoSpaceError.exit_code != code:
        # The rank that met the full disk could not write its record; another one, which lost it, could.
        told, code = {}, status
    kind = _BY_STATUS.get(code, errors.HmsaError)
    message = str(told.get("message") or f"the job ended with status {status}; its output is above")
    found = kind(message, hint=str(told.get("hint", "")))
    if isinstance(found, errors.DeviceError):
        return found
    raise found


def job_environment(runtime: RuntimeConfig, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of all ranks: pinned threads, unbuffered output, loopback within one node."""
    result = dict(env) | {name: str(runtime.thread_count) for name in _THREADS}
    result["PYTHONUNBUFFERED"] = "1"
    result[REPORTS] = "record"  # `_raise_reported` says it, once
    if runtime.nodes == 1 and runtime.ranks > 1 and sys.platform.startswith("linux"):
        # Without these gloo and nccl resolve the host's name, which fails or hangs on a machine without DNS.
        result.setdefault("GLOO_SOCKET_IFNAME", "lo")
        result.setdefault("NCCL_SOCKET_IFNAME", "lo")
    return result


def job_command(spec: Path, runtime: RuntimeConfig, env: Mapping[str, str]) -> list[str]:
    """Command line of a job: a plain process for one rank, torchrun's agent for several."""
    job = ["-m", "hmsa_core.job", str(spec)]
    if runtime.ranks == 1 and runtime.nodes == 1:
        return [sys.executable, *job]
    return [sys.executable, "-m", "hmsa_core.runtime.agent", *agent_arguments(runtime, env), *job]


def agent_arguments(runtime: RuntimeConfig, env: Mapping[str, str]) -> list[str]:
    """Torchrun's arguments: stand-alone on one node, a rendezvous from the environment on several.

    Several nodes need AUTOLABEL_RDZV_ENDPOINT (host:port of any one of them); AUTOLABEL_RDZV_ID separates
    jobs that share it. Under Slurm both have working defaults from the job's own variables.
    """
    shared = ["--nproc-per-node", str(runtime.ranks), "--max-restarts", "0"]
    if runtime.nodes == 1:
        return ["--standalone", "--local-addr", "127.0.0.1", *shared]
    endpoint = env.get("AUTOLABEL_RDZV_ENDPOINT") or _slurm_endpoint(env)
    if not endpoint:
        raise errors.ConfigError(
            f"runtime.nodes is {runtime.nodes}, but no rendezvous is given",
            hint="set AUTOLABEL_RDZV_ENDPOINT=HOST:PORT to an address that all nodes can reach",
        )
    identity = env.get("AUTOLABEL_RDZV_ID") or env.get("SLURM_JOB_ID") or "autolabel"
    return [
        "--nnodes",
        str(runtime.nodes),
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        endpoint,
        "--rdzv-id",
        identity,
        *shared,
    ]


def _slurm_endpoint(env: Mapping[str, str]) -> str:
    host = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
    return f"{host}:29400" if host else ""
