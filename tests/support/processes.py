"""Processes of a folder and what they have finished, seen from outside."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from tests.support.waiting import wait_for


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes that work in, on or (a flow, whose folder is that of the code) for a folder: pid -> command line."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline", "cwd", "environ", "status"]):
        reported = process.info
        line = " ".join(reported["cmdline"] or [])
        serves = (reported["environ"] or {}).get("AUTO_LABEL_ROOT") == str(folder)
        if reported["pid"] == os.getpid() or reported["status"] == psutil.STATUS_ZOMBIE:
            continue
        if serves or str(folder) in line or Path(reported["cwd"] or "/").is_relative_to(folder):
            found[reported["pid"]] = line
    return found


def wait_until_gone(folder: Path, timeout_s: float = 10.0) -> None:
    """No process of a folder is left."""
    wait_for(f"the end of all processes of {folder}", lambda: not processes_of(folder), timeout_s)


def receipts_of(work: Path) -> set[Path]:
    """Acknowledged shards below a stage's work folder, of all its stores."""
    return set(work.glob("*/store/receipts/shard-*.json"))
