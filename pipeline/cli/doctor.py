"""Check machine, versions, disk, locks, checkpoints and label stores; print the command that fixes each fault."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from hmsa_core.io.errors import ConfigError
from pipeline.doctor import dvc as doctor_dvc
from pipeline.doctor.checks import examine
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("--workspace", type=Path, help="default: the one that the current folder lies in, if any")
    add("--fix", action="store_true", help="fix what can be fixed without losing anything")
    add("--quick", action="store_true", help="do not read every byte of the label stores")
    add("--json", action="store_true", help="findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand: exit status 1 when something is broken."""
    root = _root(args.workspace)
    if args.fix and (root / "dvc.yaml").exists():
        done = (doctor_dvc.repair_lock(Workspace(root)), doctor_dvc.renew_stages(Workspace(root)))
        sys.stderr.write("".join(f"{line}\n" for line in done if line))
    if not args.json and root != Path.cwd().resolve():
        sys.stdout.write(f"commands are meant for this folder: cd {shlex.quote(str(root))}\n")
    findings = []
    for finding in examine(root, deep=not args.quick):
        findings.append(finding)
        if not args.json:
            fix = f"{'':8} fix: {finding.fix}\n" if finding.fix else ""
            sys.stdout.write(f"{finding.state:8} {finding.name}: {finding.text}\n{fix}")
            sys.stdout.flush()  # the next check may take minutes
    if args.json:
        sys.stdout.write(json.dumps([asdict(f) for f in findings], indent=1) + "\n")
    return int(any(f.state == "broken" for f in findings))


def _root(given: Path | None) -> Path:
    """Folder of --workspace, else the workspace of the current folder, else that folder (machine only)."""
    start = (given or Path()).resolve()
    if (start / "dvc.yaml").exists():  # also with a faulty params.yaml
        return start
    try:
        return Workspace.find(start).root
    except ConfigError:
        if given is not None:
            raise
        return start
