"""Memory of a process, in the words of Linux."""

from __future__ import annotations

from pathlib import Path


def status_kib(field: str, pid: int | str = "self") -> int:
    """KiB of a line of a process's status: `VmRSS` now, `VmHWM` at most.

    Not getrusage: its peak begins with that of the process that started this one.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
