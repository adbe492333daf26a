"""Fill the tables of ablations: train, evaluate and record the rows that are missing.

python -m research.ablate scales                          (all rows of a table, seeds 0,1,2)
python -m research.ablate labels --rows both,coarse --seeds 0
python -m research.ablate losses --dry-run                (what is missing, and how long it will take)
python -m research.ablate scales --freeze 100,101,102 --variants 7 --note "how the recipe was chosen"
python -m research.ablate camvid-table --prepare --workspace workspaces/camvid --variant default

Tables: scales, attention, labels, reasons, threshold, merging, losses, camvid-table, pays. A row and seed that are in
research/tables/NAME.parquet are not run again without --again; what was killed goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from hmsa_core.io.errors import ConfigError
from pipeline.cli.main import run_command
from pipeline.cli.stage import prepare_process
from pipeline.workspace.workspace import Workspace
from research.ablation.catalogue import make_ablation
from research.ablation.freeze import write_freeze
from research.ablation.prepare import check_ready, make_camvid_workspace, run_stages
from research.ablation.recipe import Scale
from research.ablation.run import Pending, Request, pending, run_ablation
from research.figures import TABLES

_CAMVID = ("camvid-table", "pays")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="one of the tables above")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="default: the current folder or one above it")
    parser.add_argument("--rows", metavar="A,B", help="only these rows")
    parser.add_argument("--seeds", metavar="0,1,2", help="default: 0,1,2 (threshold: 0)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, metavar="X", help="share of the epochs (1)")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes of a training (GPUs: one each)")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes of each rank (the profile's)")
    parser.add_argument("--tables", type=Path, default=TABLES, metavar="DIR", help="default: research/tables")
    parser.add_argument("--again", action="store_true", help="run what is in the table already, and replace it")
    parser.add_argument(
        "--publish", metavar="auto=student-auto", help="ROW=NAME,...: first seed's model -> models/NAME"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show which rows and seeds are in the table, run nothing")
    what.add_argument("--dry-run", action="store_true", help="also say how long the missing ones will take")
    what.add_argument("--freeze", metavar="100,101", help="freeze the recipe, and open these seeds")
    parser.add_argument("--variants", type=int, metavar="N", help="with --freeze: variants that were tried before")
    parser.add_argument("--note", default="", help="with --freeze: how the frozen one was chosen")
    parser.add_argument("--prepare", action="store_true", help="first run the stages that the table needs")
    parser.add_argument("--variant", choices=("default", "drive_shift"), help="camvid-table, pays: make the workspace")
    parser.add_argument("--teacher-epochs", type=int, metavar="N", help="with --variant: not the profile's")
    text = "with --variant: a value of params.yaml that is not the profile's"
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", help=text)
    parser.add_argument("--data", type=Path, metavar="DIR", help="with --variant: CamVid's folder")


def run(args: argparse.Namespace) -> int:
    """Run, list, estimate or freeze."""
    ws = _workspace(args)
    request = _request(ws, args)
    if args.list or args.dry_run:
        sys.stdout.writelines(_listed(request, with_times=args.dry_run))
        return 0
    if args.freeze is not None:
        _freeze(ws, request, args)
        return 0
    with ws.lock("ablation"):
        prepare_process(ws)
        if args.prepare:
            run_stages(ws, request.ablation)
        check_ready(ws, request.ablation)
        written = run_ablation(ws, request)
    sys.stdout.write(f"{len(written)} rows and seeds written to {request.path}\n")
    return 0


def _workspace(args: argparse.Namespace) -> Workspace:
    if args.variant is None:
        if args.teacher_epochs is not None or args.set:
            raise ConfigError(
                "--teacher-epochs and --set go with --variant: a workspace that is there keeps its teacher"
            )
        return Workspace.find(args.workspace)
    if not args.prepare or args.workspace is None or args.name not in _CAMVID:
        raise ConfigError(f"--variant makes a workspace: it goes with {_CAMVID[0]} --prepare --workspace DIR")
    if args.teacher_epochs is not None and args.teacher_epochs < 1:
        raise ConfigError(f"--teacher-epochs {args.teacher_epochs}: expected 1 or more")
    make_camvid_workspace(args.workspace.resolve(), args.variant, args.teacher_epochs, args.data, dict(args.set))
    return Workspace(args.workspace)


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE of a command line; the value is YAML."""
    key, equals, value = text.partition("=")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        found, equals = None, ""
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, found


def _request(ws: Workspace, args: argparse.Namespace) -> Request:
    if args.epochs_scale <= 0:
        raise ConfigError(f"--epochs-scale {args.epochs_scale:g}: expected a number above 0")
    if (args.ranks is not None and args.ranks < 1) or (args.workers is not None and args.workers < 0):
        raise ConfigError("--ranks must be at least 1, --workers at least 0")
    ablation = make_ablation(args.name, ws.params)
    rows = ablation.pick(args.rows.split(",") if args.rows else None)
    seeds = _seeds(args.seeds or ("0" if args.name == "threshold" else "0,1,2"))
    scale = Scale(args.epochs_scale, args.ranks, args.workers)
    publish = _published(args.publish, [row.name for row in rows])
    return Request(ablation, rows, seeds, args.tables.resolve(), scale, args.again, publish)


def _published(text: str | None, rows: list[str]) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    for row, _, name in pairs:
        if row not in rows or not name or "/" in name:
            raise ConfigError(f"--publish {text}: expected ROW=NAME with commas, rows among {', '.join(rows)}")
    return {row: name for row, _, name in pairs}


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"seeds {text!r}: expected whole numbers with commas, such as 0,1,2") from None
    if min(seeds) < 0:
        raise ConfigError(f"seeds {text!r}: a seed is 0 or more")
    return seeds


def _listed(request: Request, *, with_times: bool) -> list[str]:
    cells = pending(request)
    lines = [f"{request.ablation.title} ({request.path})\n", *map(_line, cells)]
    missing = [cell for cell in cells if not cell.found]
    if with_times and missing:
        trainings = {(cell.row.training, cell.seed): cell.usual_s[0] for cell in missing if cell.usual_s}
        timed = [cell.usual_s[1] for cell in missing if cell.usual_s]
        minutes = (sum(trainings.values()) + sum(timed)) / 60
        text = f"about {minutes:.0f} minutes by earlier runs" if timed else "no such row was timed"
        others = len(missing) - len(timed)
        unknown = f", and {others} that were never timed" if timed and others else ""
        lines.append(f"{len(missing)} missing: {text}{unknown}\n")
    return lines


def _line(cell: Pending) -> str:
    figure = cell.found.get("mean_iou")
    text = "missing" if figure is None else f"mIoU {100 * figure:6.2f}"
    return f"  {cell.row.name:28} seed {cell.seed:<4} {text}\n"


def _freeze(ws: Workspace, request: Request, args: argparse.Namespace) -> None:
    if args.variants is None or args.variants < 0:
        raise ConfigError("--freeze needs --variants N: how many variants were tried before this one")
    seeds = _seeds(args.freeze)
    write_freeze(ws.params, request.ablation, request.scale, request.tables, seeds, args.variants, args.note)
    sys.stdout.write(f"{request.ablation.name}: frozen, seeds {args.freeze} may run\n")


def main(argv: list[str] | None = None) -> int:
    """Command line; bad input gives one line on standard error and the error's exit status."""
    return run_command("python -m research.ablate", sys.modules[__name__], sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
