"""What changed between two label stores: per class, which class became which, and the most changed images.

autolabel diff labels/raw-old labels/raw --threshold 0.9
autolabel diff A B --policy-a A.json --policy-b B.json --pictures changed/
Raw stores are compared at a threshold or policy, or, without one, by everything the teacher said.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.labels.thresholds.policy import ThresholdPolicy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("a", metavar="A", help="folder or address of the first (older) store")
    add("b", metavar="B", help="folder or address of the second (newer) store")
    add("--threshold", metavar="T", help="one threshold for both stores")
    add("--policy-a", type=Path, metavar="F", help="policy file for A")
    add("--policy-b", type=Path, metavar="F", help="policy file for B")
    add("--pictures", type=Path, metavar="DIR", help="new folder: A | B | change of the most changed images")
    add("--limit", type=int, default=10, metavar="N", help="images listed and pictured (default 10)")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Compare the two stores and print the differences."""
    from hmsa_core.labels.diff import diff_stores, write_pictures
    from hmsa_core.labels.exporting import Selection
    from hmsa_core.labels.store.format import refuse_in_store
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.runtime.progress import Progress

    if args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: expected at least 1")
    if args.pictures is not None:
        refuse_in_store(args.pictures)
        if args.pictures.is_dir() and any(args.pictures.iterdir()):
            raise ConfigError(f"{args.pictures}: not empty", hint="give a new folder")
    stores = LabelStore.open(args.a), LabelStore.open(args.b)
    policies = (args.policy_a, args.policy_b)
    a, b = (Selection(s, policy_for(s, args.threshold, p)) for s, p in zip(stores, policies, strict=True))
    with Progress(sum(name in b.store for name in a.store.names()), what="diff") as progress:
        diff = diff_stores(a, b, advance=progress.update)
    if args.pictures is not None:
        write_pictures(diff, a, b, args.pictures, limit=args.limit)
    answer = diff.to_json(args.limit)
    if args.json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        _print(answer, args.limit)
    return 0


def policy_for(store: LabelStore, threshold: str | None, path: Path | None) -> ThresholdPolicy | None:
    """Policy of a file, or of one threshold for all classes of the store; None if neither is given."""
    from hmsa_core.labels.thresholds.policy import from_threshold
    from pipeline.review.precision import load_policy

    if threshold is not None and path is not None:
        raise ConfigError("give a threshold or a policy, not both")
    if path is not None:
        return load_policy(path, store)
    return None if threshold is None else from_threshold(threshold, store.classes)


def _print(answer: dict[str, Any], limit: int) -> None:
    write = sys.stdout.write
    write(f"{answer['images']} images in both, {answer['changed_share']:.2%} of their pixels changed\n")
    for key, text in (
        ("only_a", "only in A"),
        ("only_b", "only in B"),
        ("resized", "of another size"),
        ("other_pictures", "of the same name are other pictures, not compared"),
    ):
        if answer[key]:
            write(f"{len(answer[key])} images {text}: {', '.join(answer[key][:limit])}\n")
    write(f"\n{'class':22}{'pixels A':>14}{'pixels B':>14}{'same':>9}{'lost':>12}{'gained':>12}\n")
    for row in answer["classes"]:
        if row["a"] or row["b"]:
            same = f"{row['same'] / row['a']:.1%}" if row["a"] else "-"
            write(f"{row['name']:22}{row['a']:>14,}{row['b']:>14,}{same:>9}{row['lost']:>12,}{row['gained']:>12,}\n")
    if answer["moves"]:
        write(f"\n{'in A':22}{'in B':22}{'pixels':>14}\n")
        for move in answer["moves"][:limit]:
            write(f"{move['a']:22}{move['b']:22}{move['pixels']:>14,}\n")
    if answer["most_changed"]:
        write("\nmost changed images\n")
        for image in answer["most_changed"]:
            write(f"{image['share']:>8.2%}  {image['name']}\n")
