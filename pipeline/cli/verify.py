"""Check every byte of a label store (or of a policy, curves or rules file) and name what is wrong.

autolabel verify labels/raw
autolabel verify labels/raw --subset 1/7        (a slice; 1/7 to 7/7 together check everything)
autolabel verify labels/raw --certificate labels/raw.certificate.json     (recompute it from its draws)
Exit status 4 when anything is wrong. Shards that are not named can still be read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.cli.inference_options import ENGINE, positive

_HINT = "in a workspace `autolabel doctor` prints what brings it back; elsewhere delete the store and make it again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("store", nargs="?", metavar="STORE", help="folder or address of a label store, or one sealed JSON file")
    add("--certificate", type=Path, metavar="FILE", help="recompute a certificate (STORE: the one next to it)")
    add("--subset", default="1/1", metavar="N/T", help="check the N-th of T slices")
    add("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    add("--engine", choices=("local", "ray"), default="local", help=ENGINE)
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Check the store or the certificate, and print the result."""
    from hmsa_core.io import sealed
    from hmsa_core.io.engine import Engine
    from hmsa_core.io.errors import ConfigError, StoreError
    from hmsa_core.io.remote import is_url, local_path
    from hmsa_core.labels.store.reader import LabelStore

    if args.certificate is not None:
        return _certificate(args)
    if args.store is None:
        raise ConfigError("what is to be checked?", hint="give a STORE, a sealed file, or --certificate FILE")
    if not is_url(args.store) and (file := local_path(args.store)).is_file():
        value = sealed.read(file)
        sys.stdout.write(f"{args.store}: whole ({value.get('format', 'unknown format')})\n")
        return 0
    store = LabelStore.open(args.store)
    problems = store.verify(args.subset, Engine(args.engine, args.workers))
    if args.json:
        answer = {"store": str(args.store), "subset": args.subset, "images": len(store), "whole": not problems}
        answer["problems"] = [asdict(p) for p in problems]
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    elif problems:
        sys.stdout.write("".join(f"{p.kind:9} {p.message}\n" for p in problems))
        sys.stderr.write(f"hint: {_HINT}\n")
    else:
        part = "" if args.subset == "1/1" else f", slice {args.subset}"
        sys.stdout.write(f"{args.store}: {len(store)} images in {len(store.manifest['shards'])} shards{part}: whole\n")
    return StoreError.exit_code if problems else 0


def _certificate(args: argparse.Namespace) -> int:
    """Recompute a certificate from its draws and the store; a difference raises a StoreError of one line."""
    from hmsa_core.io.remote import local_folder
    from pipeline.review.certificate import Certificate
    from pipeline.review.view import StoreView

    store = args.store
    if store is None:
        name = re.sub(r"\.certificate(-[0-9a-f]{16})?\.json$", "", args.certificate.name)  # or a replaced one
        store = args.certificate.with_name(name)
    found = Certificate.load(args.certificate)
    found.check(StoreView(local_folder(store)), str(args.certificate))
    results = found.results()
    passed = [name for name, row in results.items() if row["certified"]]
    if args.json:
        answer = {"certificate": str(args.certificate), "store": str(store), "whole": True, "certified": passed}
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        sys.stdout.write(
            f"{args.certificate}: whole; {len(found.items)} draws recomputed; certified at {found.value['target']:g}: "
            f"{', '.join(passed) or 'no class'}\n"
        )
    return 0
