"""What a threshold keeps: per class and for the images most affected, from the store's statistics alone.

autolabel inspect labels/raw                      (the policy's thresholds; without a policy, all pixels)
autolabel inspect labels/raw --threshold 0.9
autolabel inspect labels/raw --threshold 0.8 --threshold 0.95          (what the step costs)
autolabel inspect labels/raw --policy calibration/policy.json --class rider --sort drop:0.8:0.95
autolabel inspect labels/raw --threshold 0.9 --json | jq '.classes[] | [.name, .coverage]'

Precision has a source. Audit: judged by a person on this store. Calibration: counted on images the teacher never saw,
with the curves file next to the policy. Expected: the policy's table on this store's histogram. In a workspace
calibration/policy.json gives the precision where no policy is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.review.session import Session
    from pipeline.review.stats import Thresholds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("store", metavar="STORE", help="folder or address of a label store")
    text = "a threshold on the grid of the confidence code; twice = side by side"
    add("--threshold", action="append", default=[], metavar="T", help=text)
    add("--policy", type=Path, metavar="F", help="thresholds per class; also the source of precision")
    add("--cut", action="append", default=[], metavar="CLASS:T", help="threshold of one class")
    add("--class", dest="class_name", metavar="NAME", help="look at one class only")
    add("--sort", metavar="ORDER", help="list images by name, coverage, conflict, uncertain or drop:0.8:0.95")
    add("--limit", type=int, default=20, metavar="N", help="images in the list (default: %(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Print the figures as tables, or as JSON."""
    # Imported here, because the data packages take longer than `--help` may.
    from hmsa_core.io.remote import is_url, local_folder
    from pipeline.review.precision import calibration_policy
    from pipeline.review.session import Session, start_policy

    store = local_folder(args.store, without="shard-*")  # the sidecar tables hold all figures
    known, unfit = (None, "") if args.policy else calibration_policy(store) if args.threshold else start_policy(store)
    if not args.threshold:
        args.policy = args.policy or known
    session = Session(store, policy=args.policy, evidence=known)
    chosen = _chosen(session, args)
    answer = _figures(session, chosen, args) | ({"store": args.store} if is_url(args.store) else {})
    if args.json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        if session.view.kind != "raw":
            unfit = "these labels have their thresholds already; inspect the raw store"
        _print(session, answer, args, f"No precision: {unfit}" if unfit else "")
    return 0


def _chosen(session: Session, args: argparse.Namespace) -> list[Thresholds]:
    """Thresholds to show: those of each --threshold, then the policy's; without any, all pixels."""
    if args.limit < 0:
        raise ConfigError(f"--limit {args.limit}: expected 0 or more")
    wanted: list[str | None] = list(args.threshold)
    if args.policy is not None and len(wanted) < 2:
        wanted.append("policy")
    if len(wanted) > 2:
        raise ConfigError("at most two thresholds side by side", hint="for example: --threshold 0.8 --threshold 0.9")
    return [session.thresholds(threshold, args.cut) for threshold in wanted or [None]]


def _figures(session: Session, chosen: list[Thresholds], args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.review.stats import ImageQuery, image_rows, parse_sort, store_stats

    view = session.view
    class_id = None if args.class_name is None else view.classes.index(args.class_name)
    each = [store_stats(view, thresholds, session.sources(thresholds.policy), class_id) for thresholds in chosen]
    answer = dict(each[0]) if len(each) == 1 else {"store": each[0]["store"], "thresholds": each}
    if len(each) == 2:
        answer["step"] = {
            "kept": each[1]["kept"] - each[0]["kept"],
            "classes": [
                {"id": a["id"], "name": a["name"], "kept": b["kept"] - a["kept"]}
                for a, b in zip(each[0]["classes"], each[1]["classes"], strict=True)
            ],
        }
    if args.sort is not None:
        query = ImageQuery(parse_sort(args.sort), class_id)
        total, rows = image_rows(view, chosen[-1], query, limit=args.limit, statuses=session.review.statuses())
        answer["image_count"], answer["most_affected"] = total, rows
    return answer


def _print(session: Session, answer: dict[str, Any], args: argparse.Namespace, unfit: str) -> None:
    from rich.console import Console

    from pipeline.review.terminal import print_images, print_stats, print_step

    # A pipe gets the whole table, without colour and without folding at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    with console.capture() as shown:  # by itself rich ends with status 1 where a pipe is closed
        if "thresholds" in answer:
            first, second = answer["thresholds"]
            print_step(console, first, second, session.view.classes)
        else:
            print_stats(console, answer, session.view.classes, unfit)
        if "most_affected" in answer:
            print_images(console, answer["most_affected"], answer["image_count"], args.sort, args.class_name)
    sys.stdout.write(shown.get())
