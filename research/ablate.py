"""Fill the tables of ablations: train, evaluate and record the cells that are missing, each once.

autolabel ablate scales                         (the rows of a table, for seeds 0,1,2)
autolabel ablate labels --rows both,coarse --seeds 0
autolabel ablate losses --dry-run               (what is missing, and how long it will take)
autolabel ablate scales --freeze 100,101,102,103,104 --variants 7 --note "..."
autolabel ablate camvid-table --prepare --workspace workspaces/camvid --variant default

Tables: scales, labels, reasons, threshold, merging, losses, camvid-table. A finished cell
(research/cells/NAME/ROW-seedK.json) with the same settings and code is never run again; a killed one goes on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io.errors import ConfigError
from pipeline.cli.stage import prepare_process
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from research.ablation.run import Pending, Request

RESULTS = Path(__file__).resolve().parent / "cells"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel ablate`."""
    parser.add_argument("name", metavar="NAME", help="one of the tables above")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="default: the current folder or one above it")
    parser.add_argument("--rows", metavar="A,B", help="only these rows")
    parser.add_argument("--seeds", metavar="0,1,2", help="default: 0,1,2 (threshold: 0)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, metavar="X", help="share of the epochs (1)")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes of a training (GPUs: one each)")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes of each rank (the profile's)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the tables' cells (the checkout's research/cells; without a checkout that of the workspace)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--list",
        action="store_true",
        help="show each cell's state and figure, of all seeds that are there, run nothing",
    )
    what.add_argument("--dry-run", action="store_true", help="also estimate the time of what is missing, run nothing")
    what.add_argument("--freeze", metavar="100,101", help="freeze generator and recipe, and open these seeds")
    what.add_argument("--accept", metavar="REASON", help="keep cells whose code or new default settings changed")
    parser.add_argument("--variants", type=int, metavar="N", help="with --freeze: variants that were tried before")
    parser.add_argument("--note", default="", help="with --freeze: how the frozen one was chosen")
    parser.add_argument("--prepare", action="store_true", help="first run the stages that the table needs")
    parser.add_argument("--variant", choices=("default", "drive_shift"), help="camvid-table: make the workspace")
    parser.add_argument("--teacher-epochs", type=int, metavar="N", help="with --variant: not the profile's")
    parser.add_argument("--data", type=Path, metavar="DIR", help="with --variant: CamVid's folder")


def run(args: argparse.Namespace) -> int:
    """Run, list, estimate, freeze or accept."""
    ws = _workspace(args)
    request = _request(ws, args)
    if args.list or args.dry_run:
        return _show(ws, request, args)
    if args.freeze is not None:
        return _freeze(ws, request, args)
    if args.accept is not None:
        from research.ablation.accept import accept

        sys.stdout.write(f"{accept(ws, request, args.accept)} cells accepted\n")
        return 0
    with ws.lock("ablation"):
        prepare_process(ws)
        from research.ablation.prepare import check_ready, run_stages
        from research.ablation.run import run_ablation

        if args.prepare:
            run_stages(ws, request.ablation)
        check_ready(ws, request.ablation)
        written = run_ablation(ws, request)
    sys.stdout.write(f"{len(written)} cells written to {request.folder}\n")
    return 0


def _workspace(args: argparse.Namespace) -> Workspace:
    if args.variant is None:
        if args.teacher_epochs is not None:
            raise ConfigError("--teacher-epochs goes with --variant: a workspace that is there keeps its teacher")
        return Workspace.find(args.workspace)
    if not args.prepare or args.workspace is None or args.name != "camvid-table":
        raise ConfigError("--variant makes a workspace: it goes with camvid-table --prepare --workspace DIR")
    from research.ablation.prepare import make_camvid_workspace

    if args.teacher_epochs is not None and args.teacher_epochs < 1:
        raise ConfigError(f"--teacher-epochs {args.teacher_epochs}: expected 1 or more")
    make_camvid_workspace(args.workspace.resolve(), args.variant, args.teacher_epochs, args.data)
    return Workspace(args.workspace)


def _request(ws: Workspace, args: argparse.Namespace) -> Request:
    from research.ablation.catalogue import make_ablation
    from research.ablation.material import Scale
    from research.ablation.run import Request

    if args.epochs_scale <= 0:
        raise ConfigError(f"--epochs-scale {args.epochs_scale:g}: expected a number above 0")
    if (args.ranks is not None and args.ranks < 1) or (args.workers is not None and args.workers < 0):
        raise ConfigError("--ranks must be at least 1, --workers at least 0")
    ablation = make_ablation(args.name, ws.params)
    rows = ablation.pick(args.rows.split(",") if args.rows else None)
    seeds = _seeds(args.seeds or ("0" if args.name == "threshold" else "0,1,2"))
    scale = Scale(args.epochs_scale, args.ranks, args.workers)
    results = args.results or (RESULTS if RESULTS.is_dir() else ws.path("research/cells"))
    return Request(ablation, rows, seeds, results.resolve(), scale)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"seeds {text!r}: expected whole numbers with commas, such as 0,1,2") from None
    if min(seeds) < 0:
        raise ConfigError(f"seeds {text!r}: a seed is 0 or more")
    return seeds


def _show(ws: Workspace, request: Request, args: argparse.Namespace) -> int:
    from research.ablation.freeze import deviations, is_confirming, read_freeze
    from research.ablation.run import pending

    cells = pending(ws, request)
    shown = cells if args.seeds or args.dry_run else cells + _of_other_seeds(ws, request)
    frozen = read_freeze(request.folder)
    sys.stdout.write(f"{request.ablation.title} ({request.folder})\n")
    for one in shown:
        cell = one.state.cell
        as_frozen = cell and frozen and is_confirming(one.seed) and not deviations(frozen, cell)
        sys.stdout.write(_line(one, "as frozen" if as_frozen else _told(one)))
    if args.dry_run:
        prepare_process(ws)
        _estimate(ws, request, [c for c in cells if c.state.name != "finished"])
    return 0


def _of_other_seeds(ws: Workspace, request: Request) -> list[Pending]:
    """Cells that are there of seeds nobody asked for by number, the confirming ones above all."""
    from research.ablation.cells import cells_of
    from research.ablation.run import pending

    seeds = tuple(sorted({cell.seed for cell in cells_of(request.folder)} - set(request.seeds)))
    others = pending(ws, replace(request, seeds=seeds))
    return [one for one in others if one.seed in seeds and one.state.cell]


def _line(one: Pending, told: str) -> str:
    figure = f"mIoU {100 * one.state.cell.record['mean_iou']:6.2f}" if one.state.cell else " " * 11
    return f"  {one.row.name:28} seed {one.seed:<4} {figure}  {told}".rstrip() + "\n"


def _told(one: Pending) -> str:
    told = {"missing": "missing", "finished": "", "settings": "other settings", "code": "other code"}[one.state.name]
    some = ", ".join(one.state.differs[:3]) + (" ..." if len(one.state.differs) > 3 else "")
    return f"{told}{': ' + some if some else ''}"


def _estimate(ws: Workspace, request: Request, cells: list[Pending]) -> None:
    from research.ablation.estimate import clock, estimate, measured_rates
    from research.ablation.prepare import check_ready

    check_ready(ws, request.ablation)
    rates = measured_rates(ws, request.results)
    groups = estimate(ws, cells, request.scale, rates)
    sys.stdout.write(f"estimate from {rates.source}:\n")
    for one in groups:
        told = f"training {clock(one.train_s)}, evaluation {clock(one.evaluate_s)}"
        sys.stdout.write(f"  seed {one.seed}: {told}  ({', '.join(one.rows)})\n")
    parts = [one.train_s for one in groups] + [one.evaluate_s for one in groups]
    known = [p for p in parts if p is not None]
    sys.stdout.write(f"together {clock(sum(known) if len(known) == len(parts) else None)}\n")


def _freeze(ws: Workspace, request: Request, args: argparse.Namespace) -> int:
    from research.ablation.freeze import FREEZE, write_freeze

    if args.variants is None or args.variants < 0:
        raise ConfigError("--freeze needs --variants N: how many variants were tried before this one")
    seeds = _seeds(args.freeze)
    record = write_freeze(ws.params, request, seeds, variants=args.variants, note=args.note)
    tried = record["variants_tried"]
    sys.stdout.write(f"{request.folder / FREEZE}: {tried} variants tried, digest {record['digest']}\n")
    return 0
