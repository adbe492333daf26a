"""Run one job: `python -m hmsa_core.job SPEC.json`, alone, under torchrun, or under srun.

Order matters. The job first asks the kernel to end it with its parent: a rank that outlives torchrun would write into
a folder that the next run owns. Then it checks the spec and takes the rank's lock. Only then does it import torch,
which takes seconds. A job that fails leaves `work/error.json` {exit_code, message, hint}; the first rank that fails
writes it and prints the error. Every rank exits with the status of its error (SIGTERM: 143).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError, LockedError, device_fault, translate_os_error
from hmsa_core.io.locks import FileLock
from hmsa_core.io.process import JOB_GRACE_S, StopRequest, die_with_parent, end_after_parent

if TYPE_CHECKING:
    from hmsa_core.spec import JobSpec

ERROR_FILE = "error.json"
REPORTS = "HMSA_ERRORS"  # environment; "record": an error goes into ERROR_FILE alone


def main(argv: list[str] | None = None) -> int:
    """Run the job named on the command line; return the exit status."""
    # Under torchrun nobody waits for this process; alone, SIGTERM lets it save first.
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    die_with_parent(signal.SIGKILL if under_torchrun else signal.SIGTERM)
    _leave_on_signals()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m hmsa_core.job SPEC.json\n")
        return 2
    from hmsa_core.spec import load_spec

    spec: JobSpec | None = None
    try:
        spec = load_spec(arguments[0])
        run_spec(spec)
    except HmsaError as error:
        return _fail(error, spec)
    except OSError as error:
        return _fail(translate_os_error(error, f"{spec.job if spec else 'job'}:"), spec, traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - the last line of defence: the record must say what happened
        unknown = HmsaError(f"{type(error).__name__}: {error}", hint="see the traceback above")
        return _fail(device_fault(error) or unknown, spec, traceback.format_exc())
    return 0


def _leave_on_signals() -> None:
    """Until the job itself begins there is nothing to save: a signal ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(143))


def run_spec(spec: JobSpec) -> None:
    """Take the rank's lock, meet the other ranks and run the job; errors are raised."""
    from hmsa_core.spec import InferSpec, TrainSpec, runtime_of

    runtime = runtime_of(spec)
    # Libraries read these when they are first loaded; the spec wins over torchrun's default of 1.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(runtime.thread_count)
    apply_slurm(os.environ)
    rank = int(os.environ.get("RANK", "0"))
    if rank:  # rank 0 says what all ranks know
        logging.getLogger().setLevel(logging.WARNING)
    # A killed run may still be dying (its loader workers hold the lock for a moment): wait, then give up. A file server
    # keeps the lock of a machine that is lost for a while (NFS 4: 90 s).
    wait_s = 30.0 if runtime.nodes == 1 else 150.0
    with FileLock(spec.work / f"rank{rank}.lock", what=f"{spec.job} job in {spec.work}", wait_s=wait_s):
        if rank == 0:
            (spec.work / ERROR_FILE).unlink(missing_ok=True)
        from hmsa_core.runtime.ranks import JobContext, start_ranks

        ranks = start_ranks(runtime)
        stop = StopRequest(repeats=False).install()  # whoever started this process limits the time, or dies
        end_after_parent(JOB_GRACE_S)
        context = JobContext.of(spec.work, ranks, runtime, stop)
        if isinstance(spec, TrainSpec):
            from hmsa_core.runtime.watchdog import Watchdog
            from hmsa_core.training import run

            with Watchdog(runtime.lost_minutes, spec.work / ERROR_FILE, lambda error: _fail(error, spec)) as watchdog:
                run.run(spec, replace(context, beat=watchdog.beat))
        elif isinstance(spec, InferSpec):
            from hmsa_core.inference.folder import infer_job

            infer_job.run(spec, context)
        else:
            from hmsa_core.inference.evaluation import evaluate_job

            evaluate_job.run(spec, context)
        ranks.barrier()
        ranks.stop()


def apply_slurm(env: MutableMapping[str, str]) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from a Slurm step; False where there is none.

    torchrun's own variables win, so `srun torchrun ...` with one task per node works as well. A batch script
    that runs the job without srun has no SLURM_STEP_NUM_TASKS and stays alone.
    """
    if "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return False
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
    env["LOCAL_RANK"] = env["SLURM_LOCALID"]
    env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
    # Two steps on one node must not meet: the port follows from the ids of job and step.
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env.get("SLURM_STEP_ID", "0"))
    env.setdefault("MASTER_PORT", str(20000 + (job * 31 + step) % 40000))
    return True


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: `gpu[03-06,9],cpu1` -> `gpu03`."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST {nodes!r} names no host: set MASTER_ADDR")
    return match[1] + (match[2] or "") + (match[3] or "")


def _fail(error: HmsaError, spec: JobSpec | None, trace: str = "") -> int:
    """Record the error, unless another rank's came first: that one is the cause, this one its consequence."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise another one here for a dead loader worker
    rank = os.environ.get("RANK", "0")
    record = {"exit_code": error.exit_code, "message": error.message, "hint": error.hint, "rank": int(rank)}
    # A job that holds the folder writes its own error there.
    has_record = spec is not None and not isinstance(error, LockedError)
    is_first = write_first(spec.work / ERROR_FILE, record, f"rank{rank}") if spec and has_record else rank == "0"
    if is_first:
        sys.stderr.write(trace)
        # The process that started this one may read the record and print it itself.
        is_recorded = os.environ.get(REPORTS) == "record" and spec and has_record and (spec.work / ERROR_FILE).exists()
        if not is_recorded:
            sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        sys.stderr.flush()
    return error.exit_code


def write_first(path: Path, record: dict[str, object], who: str) -> bool:
    """Publish the record of a failure; False where another one's is there already."""
    temporary = path.with_name(f".{path.name}.{who}")
    is_first = True
    # On a full disk there is no record; the exit status and standard error still tell.
    with contextlib.suppress(OSError):
        atomic.write_bytes(temporary, json.dumps(record, sort_keys=True).encode() + b"\n")
        try:
            atomic.ops.link(temporary, path)
        except FileExistsError:
            is_first = False
        temporary.unlink(missing_ok=True)
    return is_first


def _run_and_leave() -> None:
    """Run `main` and end with its status, or with 1 after an error that `main` does not catch."""
    status = 1
    try:
        status = main()
    except Exception:  # noqa: BLE001 - torch's word about a dead loader worker comes out of any line, `_fail`'s too
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.stdout.flush()
        sys.stderr.flush()
        if status:
            # Python waits for loader workers at its exit: those left ignore SIGTERM, and would be waited for for ever.
            # Teardown of a broken process group can hang too. The kernel frees locks and pipes.
            os._exit(status)


if __name__ == "__main__":
    _run_and_leave()
