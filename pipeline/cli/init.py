"""Make a workspace: a folder with params.yaml and dvc.yaml, git and DVC set up.

--images DIR --labels DIR plans it from your own folders: files are paired, classes found, images dealt to roles, and a
recipe chosen that fits data and machine. `cd DIR && dvc repro` then runs the chain. Nothing is written if something is
wrong.

--profile NAME takes settings that are ready: tiny (the whole chain in two minutes), demo (generated street scenes),
camvid (real photographs), cityscapes (the paper's recipe; fill in two paths), paper-final (the same with all fine data:
none is left to judge).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

_OF_FOLDERS = ("labels", "new", "coarse", "classes", "void", "teacher", "adopt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel init`."""
    add = parser.add_argument
    add("dir", metavar="DIR", type=Path, help="new or empty folder")
    add("--images", type=Path, metavar="DIR", help="your images, in any folders below it")
    add("--labels", type=Path, metavar="DIR", help="their label maps: names of the images, with any ending")
    add("--new", type=Path, metavar="DIR", help="more images, to be labelled; you can add some later")
    add("--coarse", type=Path, metavar="DIR", help="coarse label maps of images without --labels")
    text = "class names: any tool's file, or cityscapes, mapillary, camvid, voc, ade20k (default: next to the maps)"
    add("--classes", metavar="FILE|NAME", help=text)
    text = "values of label maps, or colours rrggbb, that mean no class, such as 0,255; none = all are classes"
    add("--void", metavar="VALUES", help=text)
    text = "another network that labels (docs/inference.md), also without --labels: then nothing is trained"
    add("--teacher", metavar="SPEC", help=text)
    text = "networks that label together: how they do it best is chosen by images of role learn, as `adopt` does"
    add("--adopt", nargs="+", metavar="SPEC", help=text)
    add("--dry-run", action="store_true", help="print the plan alone")
    add("--profile", help="tiny, demo, camvid, cityscapes or paper-final")
    text = "root of the target data set (tiny, demo: a folder that `autolabel demo-data` made)"
    add("--data", type=Path, metavar="PATH", help=text)
    add("--pretrain-data", type=Path, metavar="PATH", help="root of Mapillary Vistas")
    add("--no-data", action="store_true", help="do not generate the demo data now")
    text = "two processes of one thread, fp32: the same result on every processor, slower where there are more cores"
    add("--deterministic", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Make the workspace, or print that it exists."""
    if (args.images is None) == (args.profile is None):
        hint = "your own images: --images DIR --labels DIR; settings that are ready: --profile demo"
        raise ConfigError("expected either --images or --profile", hint=hint)
    if args.images is not None:
        return _run_plan(args)
    if given := next((name for name in _OF_FOLDERS if getattr(args, name) is not None), None):
        raise ConfigError(f"--{given} belongs to --images, found --profile {args.profile}")
    return _run_profile(args)


def _run_plan(args: argparse.Namespace) -> int:
    from pipeline.plan.duration import expected_seconds
    from pipeline.plan.plan import TEACHER_FILE
    from pipeline.workspace.new_workspace import InitRequest, init_workspace
    from pipeline.workspace.work import in_words

    for given in (args.images, args.labels, args.new, args.coarse):
        if given is not None and args.dir.resolve().is_relative_to(given.resolve()):
            hint = "choose a folder outside, such as ../ws"
            raise ConfigError(
                f"{args.dir} lies in {given}: the pictures that the workspace makes would be read", hint=hint
            )
    plan = _plan(args)
    sys.stdout.write("".join(f"{line}\n" for line in plan.lines()))
    sys.stdout.flush()
    if args.dry_run or not (args.dir / "params.yaml").exists():  # takes seconds
        is_busy = os.getloadavg()[0] > len(os.sched_getaffinity(0))
        what = f"about {in_words(expected_seconds(plan))} for `dvc repro` on this machine, by one step and one image"
        more = " (less once the other programs that run here have ended)" if is_busy else ""
        sys.stdout.write(f"time       {what}{more}\n")
    if args.dry_run:
        return 0
    files = plan.files()
    is_new = init_workspace(InitRequest(args.dir, "own", planned=files))
    status = _tell_next(args, is_new, "your own images")
    files.pop(TEACHER_FILE, None)  # holds times
    if changed := [name for name, text in files.items() if not _is_in(args.dir / name, text)]:
        sys.stderr.write(f"not as in this plan: {', '.join(changed)}; edit there, or plan into another folder\n")
    return status


def _is_in(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


def _plan(args: argparse.Namespace) -> Plan:
    from pipeline.cli.inference_options import tell
    from pipeline.plan.plan import make_plan
    from pipeline.plan.reading import Folders

    if args.adopt and (args.teacher or not args.labels):
        wrong = "--teacher says itself how it labels" if args.teacher else "it is chosen by label maps: --labels DIR"
        raise ConfigError(f"--adopt: {wrong}", hint="give either --adopt SPEC ... with --labels, or --teacher SPEC")
    folders = Folders(args.images, args.labels, args.new, args.coarse)
    void, adopt = _values(args.void), args.adopt or ()
    return make_plan(folders, classes=args.classes, void=void, teacher=args.teacher, adopt=adopt, tell=tell)


def _values(text: str | None) -> frozenset[int] | None:
    """Values of --void: numbers, or colours of six hex digits; none = nothing is void."""
    if text is None:
        return None
    parts = [part.strip().removeprefix("#") for part in text.split(",") if part.strip() not in ("", "none")]
    if wrong := next((part for part in parts if not re.fullmatch(r"\d{1,3}|[0-9a-fA-F]{6}", part)), None):
        raise ConfigError(f"--void {wrong}: expected values such as 0,255, colours such as 000000, or none")
    return frozenset(int(part, 16 if len(part) == 6 else 10) for part in parts)


def _run_profile(args: argparse.Namespace) -> int:
    from pipeline.workspace.new_workspace import GENERATED, InitRequest, init_workspace

    request = InitRequest(args.dir, args.profile, args.data, args.pretrain_data, not args.no_data, args.deterministic)
    is_new = init_workspace(request)
    folder = shlex.quote(str(args.dir))
    if is_new and args.profile in GENERATED and args.no_data and args.data is None:
        sys.stderr.write(f"next: autolabel demo-data {folder}\n")
    if is_new and args.profile in ("cityscapes", "paper-final") and args.data is None:
        sys.stderr.write(f"next: fill in data.target.root and data.pretrain.root in {args.dir / 'params.yaml'}\n")
    return _tell_next(args, is_new, f"profile {args.profile}")


def _tell_next(args: argparse.Namespace, is_new: bool, what: str) -> int:
    if not is_new:
        sys.stderr.write(f"{args.dir}: already a workspace of {what}; nothing changed\n")
        return 0
    sys.stderr.write(f"{args.dir}: workspace of {what}\n")
    check = "" if args.images else "autolabel doctor && "
    sys.stderr.write(f"next: cd {shlex.quote(str(args.dir))} && {check}dvc repro\n")
    return 0
