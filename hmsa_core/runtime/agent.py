"""torchrun with an exit status that names the cause, and without a page of traceback.

`python -m hmsa_core.runtime.agent TORCHRUN-ARGUMENTS` starts the ranks exactly as
`python -m torch.distributed.run` does. Torchrun always ends with 1. The agent ends with the status of the first rank
that failed: 128 + n when a signal n killed it, 143 when the agent itself was stopped, 7 when another node is
lost. The agent does not repeat the error that a rank has printed. `--rdzv-backend` can be BACKEND as well
(`hmsa_core.runtime.rendezvous`); `--rdzv-conf silent=S` says after how many seconds a node is lost.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from typing import TYPE_CHECKING

from hmsa_core.io.errors import DeviceError, HmsaError, InterruptedRunError
from hmsa_core.io.process import die_with_parent

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

BACKEND = "autolabel"


def main(argv: list[str] | None = None) -> int:
    """Run the ranks to their end and return the exit status described above."""
    die_with_parent()
    arguments = sys.argv[1:] if argv is None else argv
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError
    from torch.distributed.run import parse_args, run

    from hmsa_core.runtime import rendezvous

    # Torch kills ranks half a minute after a stop signal; a cluster gives more time (docs/training.md).
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "110")
    # The elastic agent logs each failed rank and each signal, which the ranks have reported already.
    logging.disable(logging.ERROR)
    try:
        # Torchrun makes a folder for the ranks' log files, even without log files, and never removes it.
        with tempfile.TemporaryDirectory(prefix="autolabel-ranks-") as logs:

            def lost(what: str) -> None:
                sys.stderr.write(f"{what}\n")
                shutil.rmtree(logs, ignore_errors=True)
                os._exit(DeviceError.exit_code)  # the ranks may wait for the lost node for ever: the kernel ends them

            rendezvous.register(BACKEND, lost)
            run(parse_args(["--log-dir", logs, *arguments]))  # type: ignore[no-untyped-call]  # torch's own entry is untyped
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode < 0:
            sys.stderr.write(f"rank {rank} was ended by signal {-failure.exitcode}\n")
            return 128 - failure.exitcode
        return failure.exitcode or 1
    except SignalException:
        return InterruptedRunError.exit_code
    except RendezvousTimeoutError:
        sys.stderr.write("the other nodes did not come in time\n")
        return HmsaError.exit_code
    except RendezvousError as error:
        sys.stderr.write(f"rendezvous: {error or type(error).__name__}\n")
        return DeviceError.exit_code
    return 0


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return the failure that caused the others.

    Failures carry whole seconds, and a rank whose neighbour was killed fails within the same second: then the killed
    rank is the cause. (The agent ends ranks by SIGTERM.)
    """
    rank, first = error.get_first_failure()
    killed = {
        r: f
        for r, f in error.failures.items()
        if f.exitcode < 0 and f.exitcode != -signal.SIGTERM and f.timestamp <= first.timestamp + 1
    }
    return min(killed.items()) if killed and first.exitcode >= 0 else (rank, first)


if __name__ == "__main__":
    sys.exit(main())
