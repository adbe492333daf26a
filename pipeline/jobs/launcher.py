"""Start a job of `hmsa_core.runtime` as a process or under torchrun, and raise the error that it reports.

The chain is dvc -> `autolabel stage` (on other nodes `autolabel join`) -> agent (torchrun) -> ranks. Each asks the
kernel for a signal when its parent dies, and passes a stop request down. Thread counts are pinned: they change the last
bits of a result. A rank that a signal killed, or whose node is lost, is started again from its last checkpoint, at most
RELAUNCHES times. An error that a rank reported is raised here unchanged.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from hmsa_core.config import RuntimeConfig
from hmsa_core.io import errors
from hmsa_core.io.atomic import read_json
from hmsa_core.io.process import StopRequest, run_child
from hmsa_core.job import ERROR_FILE, REPORTS
from hmsa_core.runtime.agent import BACKEND
from hmsa_core.spec import JobSpec, load_spec, runtime_of, save_spec
from pipeline.jobs.devices import Claim, claim_devices, cpu_emulates_bf16
from pipeline.jobs.nodes import Meeting, done_mark, interface_of, is_open, launch_prefix, meetings, node_command

RELAUNCHES = 2
SILENT_S = 60  # seconds without a sign of life after which a node counts as lost
_LOOK_S = 2.0
_LOG = logging.getLogger(__name__)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # variables of a pod or task; here each pod or task is a whole node
# glibc gives freed memory back to the kernel at every step and faults it in again at the next: a fifth of the time of
# a narrow network (research/bench/bench_train_step.py with and without). 32 MiB is the most that all versions take.
KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
# Each error class by exit status; subclasses share the status of their parent, so the parent class is raised.
_KINDS: list[type[errors.HmsaError]] = [*errors.HmsaError.__subclasses__(), errors.HmsaError]
_BY_STATUS = {kind.exit_code: kind for kind in _KINDS}


def run_job(spec: JobSpec, *, stop: StopRequest) -> None:
    """Run a job to its end, on all its nodes; its results lie below `spec.work` afterwards.

    Raises:
        HmsaError: the error that the job reported, in the class of its exit status: InterruptedRunError when `stop`
            was set, LockedError when a GPU is taken. Also raised when a rank died more often than RELAUNCHES times.
    """
    work = Path(spec.work)
    save_spec(work / "spec.json", spec)
    runtime = runtime_of(spec)
    claimed = runtime.ranks
    if spec.job == "infer" and "RAY_ADDRESS" not in os.environ:  # Ray assigns the GPUs of a cluster
        claimed = spec.config.runtime.ranks
    with ExitStack() as held:
        another, prefix = None, []
        if runtime.nodes > 1:
            prefix = launch_prefix(runtime, os.environ)
            another = held.enter_context(meetings(work, runtime.nodes, os.environ))
            if not prefix:
                _LOG.info("start `autolabel join` with this workspace on %d other machine(s)", runtime.nodes - 1)
        claim = Claim() if prefix else held.enter_context(claim_devices(runtime.device, claimed))
        for attempt in range(RELAUNCHES + 1):
            if stop.is_set():
                raise errors.InterruptedRunError("stopped before the job was started")
            (work / ERROR_FILE).unlink(missing_ok=True)
            record = another() if another else None
            if record and prefix:
                status = run_child([*prefix, *node_command(record)], stop=stop)
                is_done = status == 0 and done_mark(record).exists() and not (work / ERROR_FILE).exists()
            else:
                status = _run_here(spec, Meeting.of(record) if record else Meeting(), stop, claim)
                is_done = status == 0
            if is_done:
                return
            fault = _raise_reported(work, status, stop)
            if attempt == RELAUNCHES:
                break
            why = fault.message if fault else f"status {status}"
            message = "a rank of %s was lost (%s); start %d of %d from the last checkpoint"
            _LOG.warning(message, spec.job, why, attempt + 2, RELAUNCHES + 1)
    if fault:
        raise fault
    raise errors.HmsaError(
        f"the {spec.job} job died {RELAUNCHES + 1} times without an error of its own (last status {status})",
        hint=f"a killed rank often means too little memory: see {work / 'log.jsonl'} and the kernel's log",
    )


def take_part(record: Path, stop: StopRequest) -> int:
    """Run this node's ranks of the job that a stage recorded; return the status of their agent.

    The ranks are stopped when the stage has ended, or has started the job again.
    """
    spec = load_spec(record.parent / "spec.json")
    runtime = runtime_of(spec)
    until, is_over = StopRequest(), threading.Event()
    stop.on_stop(until.request)
    if stop.is_set():
        until.request()

    def watch() -> None:
        while not is_over.wait(_LOOK_S):
            if not is_open(record):
                until.request()
                return

    with claim_devices(runtime.device, runtime.ranks) as claim:
        threading.Thread(target=watch, name="stage-watch", daemon=True).start()
        try:
            return _run_here(spec, Meeting.of(record), until, claim)
        finally:
            is_over.set()


def _run_here(spec: JobSpec, meeting: Meeting, stop: StopRequest, claim: Claim) -> int:
    """Run the ranks of this node, and return the status of the one that failed first."""
    runtime = runtime_of(spec)
    environment = job_environment(runtime, os.environ, meeting) | claim.environment
    if spec.job == "train" and not claim.devices:
        environment = KEEP_HEAP | environment  # variables that the user has set stay
        if runtime.precision == "bf16" and cpu_emulates_bf16():
            _LOG.warning(
                "%s: bf16 is emulated on this processor and slower than fp32; set runtime.precision of this "
                "training to fp32 in params.yaml",
                spec.stage,
            )
    command = job_command(Path(spec.work) / "spec.json", runtime, meeting)
    return run_child(command, stop=stop, env=environment, pass_fds=claim.fds)


def fault_of(status: int, message: str) -> errors.HmsaError | None:
    """The error for an agent's status; None where the agent ended well or was stopped."""
    if status in (0, errors.InterruptedRunError.exit_code):
        return None
    return _BY_STATUS.get(status, errors.DeviceError)(message)


def _raise_reported(work: Path, status: int, stop: StopRequest) -> errors.DeviceError | None:
    """Raise the error that the job reported; return when the job may be started again: killed, or a GPU failed."""
    if stop.is_set():
        raise errors.InterruptedRunError("stopped on request; progress is saved, run again to go on")
    record = work / ERROR_FILE
    reported = read_json(record) if record.exists() else {}
    code = int(reported.get("exit_code", status))
    was_killed = status < 0 or (status > 128 and status != errors.InterruptedRunError.exit_code)
    if was_killed:
        return None  # ranks that torchrun stopped afterwards may have left a record: it is not the cause
    if status == errors.NoSpaceError.exit_code != reported.get("exit_code"):
        # The rank that met the full disk could not write its record; another one, which lost it, perhaps could.
        raise errors.NoSpaceError(f"no space left on device: the job in {work} ended; its output above says where")
    kind = _BY_STATUS.get(code, errors.HmsaError)
    message = str(reported.get("message") or f"the job ended with status {status}; its output is above")
    found = kind(message, hint=str(reported.get("hint", "")))
    if isinstance(found, errors.DeviceError):
        return found
    raise found


def job_environment(runtime: RuntimeConfig, env: Mapping[str, str], meeting: Meeting) -> dict[str, str]:
    """The environment of all ranks: pinned threads, unbuffered output, the network interface that they use."""
    result = {name: value for name, value in env.items() if name not in _PLACE}
    result |= {name: str(runtime.thread_count) for name in _THREADS}
    result["PYTHONUNBUFFERED"] = "1"
    result[REPORTS] = "record"  # `_raise_reported` reports the error, once
    if runtime.ranks * runtime.nodes > 1 and sys.platform.startswith("linux"):
        # Without these gloo and nccl resolve the host's name, which fails or hangs on a machine without DNS.
        name = "lo" if runtime.nodes == 1 else interface_of(meeting.local_address())
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name else ():
            result.setdefault(variable, name)
    return result


def job_command(spec: Path, runtime: RuntimeConfig, meeting: Meeting) -> list[str]:
    """Command line of a node's part of a job: a plain process for one rank, torchrun's agent for several."""
    job = ["-m", "hmsa_core.job", str(spec)]
    if runtime.ranks == 1 and runtime.nodes == 1:
        return [sys.executable, *job]
    return [sys.executable, "-m", "hmsa_core.runtime.agent", *agent_arguments(runtime, meeting), *job]


def agent_arguments(runtime: RuntimeConfig, meeting: Meeting) -> list[str]:
    """Torchrun's arguments. A lost rank ends the job: only this program knows whether the job may be started again."""
    host = f"[{meeting.host}]" if ":" in meeting.host else meeting.host
    wait_s = max(1, round(60 * runtime.lost_minutes))
    given = {
        "nnodes": runtime.nodes,
        "rdzv-backend": BACKEND,
        "rdzv-endpoint": f"{host}:{meeting.port}",
        "rdzv-id": meeting.identity,
        "rdzv-conf": f"join_timeout={wait_s},silent={min(wait_s, SILENT_S)}",
        "local-addr": meeting.host if runtime.nodes == 1 else meeting.local_address(),
        "nproc-per-node": runtime.ranks,
        "max-restarts": 0,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]
