"""Slurm: translate the variables of `srun` with one task a rank into those that torchrun would have set."""

from __future__ import annotations

import re
from collections.abc import MutableMapping

from hmsa_core.io.errors import ConfigError

__all__ = ["apply_slurm", "first_host"]


def apply_slurm(env: MutableMapping[str, str]) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from a Slurm step; False where there is none.

    torchrun's own variables win, so `srun torchrun ...` with one task a node works as well. A batch script
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
