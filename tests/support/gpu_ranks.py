"""Functions on several GPU ranks: fresh processes under torchrun's agent (CUDA does not survive a fork).

python -m tests.support.gpu_ranks MODULE FUNCTION ARGUMENTS.json     # what each rank runs
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.jobs import REPO, agent


def on_gpus(count: int, function: Callable[..., None], folder: Path, *, timeout_s: float = 300.0, **given: Any) -> int:
    """Run `function(ranks, folder, **given)` on so many ranks; returns the exit status of the agent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "arguments.json"
    path.write_text(json.dumps({"folder": str(folder), **given}))
    name = [function.__module__, function.__name__, str(path)]
    command = [sys.executable, *agent("--standalone", "--nproc-per-node", str(count)), "-m", __name__, *name]
    env = os.environ | {"PYTHONPATH": str(REPO), "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=env, timeout=timeout_s, check=False).returncode


def main() -> None:
    """Meet the other ranks and call the function."""
    module, function, path = sys.argv[1:]
    given = json.loads(Path(path).read_text())
    from hmsa_core.config import RuntimeConfig
    from hmsa_core.runtime.ranks import start_ranks

    ranks = start_ranks(RuntimeConfig(device="cuda", precision="fp32", sync_norm=given.pop("sync_norm", "world")))
    getattr(import_module(module), function)(ranks, Path(given.pop("folder")), **given)
    ranks.barrier()
    ranks.stop()


if __name__ == "__main__":
    main()
