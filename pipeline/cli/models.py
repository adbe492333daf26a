"""List registered models, promote one to teacher, or return to the previous one; measure how trainings differ.

autolabel models list
autolabel models promote VERSION --reason "better on rain"
autolabel models rollback
autolabel models pin VERSION        (the reference that catches slow losses)
autolabel models register DIR       (give a checkpoint folder a version)
autolabel models aa [--runs 3]      (train the student's recipe with other seeds: the gate needs their spread)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import ConfigError, HmsaError, InputError
from pipeline.cli.stage import prepare_process
from pipeline.night.reaper import nightly_lock
from pipeline.workspace.registry import Registry, damage
from pipeline.workspace.table import CURRENT, TABLE
from pipeline.workspace.workspace import Workspace

_OF_NO_VERSION = {  # actions that would silently ignore a version
    "list": "all are listed",
    "rollback": "it returns to the previous teacher",
    "aa": "it trains the student's recipe",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("action", choices=["list", "promote", "rollback", "pin", "register", "aa"])
    add("version", nargs="?", help="for promote and pin; for register a checkpoint folder")
    add("--workspace", type=Path, default=Path(), help="default: the current folder")
    add("--reason", default="", help="kept in the history")
    add("--by", default="", help="who decided; default: the user's name")
    add("--runs", type=int, default=3, help="aa: trainings in all, the student's own included (3)")
    add("--json", action="store_true", help="list as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    if args.version is not None and args.action in _OF_NO_VERSION:
        raise ConfigError(
            f"autolabel models {args.action} {args.version}: takes no version, {_OF_NO_VERSION[args.action]}",
            hint=f"leave {args.version} out; `autolabel models promote VERSION` makes a version the teacher",
        )
    if args.action == "aa":
        return _aa(Workspace.find(args.workspace), args.runs)
    ws = Workspace.find(args.workspace)
    registry = Registry(ws.root)
    if args.action == "rollback":
        with _nothing_reads_the_teacher(ws):
            sys.stdout.write(f"teacher: {registry.rollback(by=args.by, reason=args.reason)}\n")
        return 0
    current = registry.current()
    if args.action == "list":
        _list(ws, registry, current, as_json=args.json)
        return 0
    if not args.version:
        wanted = "which version? see `autolabel models list`"
        if args.action == "register":
            wanted = "which checkpoint? give its folder, such as models/student"
        raise ConfigError(f"autolabel models {args.action}: {wanted}")
    if args.action == "register":
        version = registry.register(Path(args.version))
        sys.stdout.write(f"registered: {version.name}\n")
        return 0
    version = registry.get(args.version)
    if args.action == "pin":
        registry.pin_champion(version)
        sys.stdout.write(f"reference champion: {version.name}\n")
        return 0
    with _nothing_reads_the_teacher(ws):
        registry.promote(version, by=args.by, reason=args.reason)
    sys.stdout.write(f"teacher: models/registry/{version.name} (was {current})\n")
    return 0


@contextmanager
def _nothing_reads_the_teacher(ws: Workspace) -> Iterator[None]:
    """Hold off nights, and stages that read the teacher: they would fail at their end, as it is another one then."""
    with ExitStack() as locks:
        locks.enter_context(nightly_lock(ws.root))
        for stage in TABLE:
            if CURRENT in stage.deps:
                locks.enter_context(ws.lock(stage.name))
        yield


def _aa(ws: Workspace, runs: int) -> int:
    # Not during a nightly run, whose GPU and work folders these trainings use.
    with nightly_lock(ws.root), ws.lock("student-train"), ws.lock("evaluate"), chdir(ws.root):
        prepare_process(ws)
        from pipeline.night.gatekeeper import aa_file, measure_aa

        found = measure_aa(ws, runs)
    values = ", ".join(f"{100 * value:.2f}" for value in found["mean_iou"])
    sys.stdout.write(f"mean IoU of {runs} trainings: {values}; standard deviation {100 * found['sd']:.2f} points\n")
    sys.stdout.write(f"written to {aa_file(ws)}\n")
    return 0


def _scores(ws: Workspace) -> dict[Any, float]:
    """Mean IoU in the main setting by digest of weights, as the last `evaluate` measured it."""
    path = ws.path("evaluation/metrics.json")
    metrics = read_json(path) if path.exists() else {}
    if not metrics.get("models"):  # there is no report set
        return {}
    main = metrics["main_setting"]
    return {row["weights_sha256"]: row["settings"][main]["value"] for row in metrics["models"].values()}


def _why(registry: Registry, current: str) -> str:
    """What made the present teacher the teacher, who, and why: the last line of the history."""
    last = (registry.history() or [{}])[-1]
    if last.get("to") != current:
        return ""
    reason = f": {last['reason']}" if last.get("reason") else ""
    return f" ({last['action']} by {last.get('by', '?')}{reason})"


def _list(ws: Workspace, registry: Registry, current: str, *, as_json: bool) -> None:
    versions, torn = registry.read()
    for name, fault in torn.items():
        hint = f"`autolabel models register models/registry/{name}` writes its record anew"
        sys.stderr.write(f"warning: {name} is not listed: {fault}\nhint: {hint}\n")
    try:
        champion = registry.champion()
    except InputError as error:  # people need the list to pick another champion
        champion = None
        sys.stderr.write(f"warning: {error.message}\nhint: {error.hint}\n")
    teaching = current.rpartition("/")[2]
    if as_json:
        rows = [{"version": v.name, "current": v.name == teaching, **v.record} for v in versions]
        listed = {"teacher": current, "champion": champion and champion.name, "versions": rows}
        sys.stdout.write(json.dumps(listed, indent=1, sort_keys=True) + "\n")
        return
    sys.stdout.write(f"teacher now: {current}{_why(registry, current)}\n")
    with suppress(HmsaError):  # the list needs no settings, so faulty ones do not stop it
        if labels := ws.params.auto_infer.teacher:
            sys.stdout.write(f"auto-infer labels with auto_infer.teacher instead: {', '.join(labels)}\n")
    scores = _scores(ws)
    for version in versions:
        miou = version.record.get("metrics", {}).get("mean_iou", scores.get(version.record.get("weights_sha256")))
        text = f"mIoU {100 * miou:6.2f}" if miou is not None else "mIoU      ?"
        marks = " <- teaches" if version.name == teaching else ""
        marks += " (champion)" if champion and champion.name == version.name else ""
        marks += f" (damaged: {wrong})" if (wrong := damage(version.path)) else ""
        sys.stdout.write(f"{version.name}  {text}  {version.record.get('role', '')}{marks}\n")
    if not versions:
        text = "no version is registered yet: a promoted student becomes the first; `models register DIR` adds one"
        sys.stdout.write(f"{text}\n")
