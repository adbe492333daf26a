"""Accelerators of this machine, and one kernel lock for each that a job uses.

The driver's tool lists the devices, so torch is not imported. Device UUIDs name the locks, the same for every workspace
and program of this user. CUDA_VISIBLE_DEVICES also takes UUIDs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hmsa_core.io.errors import ConfigError, LockedError
from hmsa_core.io.locks import FileLock, device_lock_path

CPUINFO = Path("/proc/cpuinfo")
_BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's


@dataclass(frozen=True)
class Claim:
    """Devices that a job may use: ids for CUDA_VISIBLE_DEVICES (none = CPU) and the locks' descriptors."""

    devices: tuple[str, ...] = ()
    fds: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the job's environment needs; empty on a CPU."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {}


def visible_devices() -> list[str]:
    """UUIDs of the GPUs that this process may use, in CUDA_VISIBLE_DEVICES' order; empty without a driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and chosen.strip() in ("", "-1", "none", "NoDevFiles"):
        return []
    present = gpu_list("uuid")
    if chosen is None:
        return present
    wanted = [part.strip() for part in chosen.split(",") if part.strip()]
    # A number is a position in the driver's list; anything else is already an id (GPU-..., MIG-...).
    return [present[int(w)] if w.isdigit() and int(w) < len(present) else w for w in wanted]


def cpu_emulates_bf16() -> bool:
    """Whether this processor lists its instructions and bf16 is not among them: training in bf16 is slow then."""
    fields = first_processor()
    known = {*fields.get("flags", "").split(), *fields.get("Features", "").split()}
    return bool(known) and not known & _BF16_UNITS


def first_processor() -> dict[str, str]:
    """Fields that the kernel lists for the first processor; {} where the kernel lists none (not Linux)."""
    try:
        text = CPUINFO.read_text("utf-8", errors="replace")
    except OSError:
        return {}
    lines = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
    return {key.strip(): value.strip() for key, _, value in lines}


def gpu_list(field: str) -> list[str]:
    """A field (`uuid`, `name`) of each GPU as the driver's tool lists them; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # a tool without a working driver: the machine computes on its CPU
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


@contextmanager
def claim_devices(device: str, count: int) -> Iterator[Claim]:
    """Lock `count` free devices for the length of the block (none for `cpu`, or `auto` without a GPU).

    Raises:
        ConfigError: `cuda` without a visible GPU, or more ranks than GPUs.
        LockedError: too few devices are free; the message names the owner of one.
    """
    present = [] if device == "cpu" else visible_devices()
    if not present:
        if device == "cuda":
            raise ConfigError(
                "runtime.device is cuda, but no GPU is visible",
                hint="set it (or --device) to auto or cpu, or repair the driver",
            )
        yield Claim()
        return
    if count > len(present):
        raise ConfigError(
            f"runtime.ranks is {count}, but {len(present)} GPU(s) are visible: one rank needs one GPU",
            hint=f"set runtime.ranks to at most {len(present)}",
        )
    with ExitStack() as stack:
        taken: dict[str, int] = {}
        busy = ""
        for name in present:
            lock = FileLock(device_lock_path(name), what=name)
            try:
                if len(taken) < count:
                    taken[name] = stack.enter_context(lock).fd
            except LockedError as error:
                busy = error.message
        if len(taken) < count:
            raise LockedError(
                f"{count} GPU(s) needed, {len(taken)} free: {busy}", hint="wait for the other job, or stop it"
            )
        yield Claim(tuple(taken), tuple(taken.values()))
