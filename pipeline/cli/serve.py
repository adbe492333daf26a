"""The web page of a label store: drag the threshold, watch the mask, review, audit, save the policy.

autolabel serve STORE                                        (straight after `label`, or in a workspace)
autolabel serve labels/raw --policy calibration/policy.json --images data/cityscapes
autolabel serve labels/raw --compare other/labels/raw        (two stores, swipe)

Listens on 127.0.0.1; from another machine use an SSH tunnel, or --host with --token. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError, needs_extra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="folder of a label store")
    text = (
        "thresholds and calibration to start with (default: the workspace's calibration/policy.json, else "
        "STORE.policy.json; without them all pixels are kept)"
    )
    add("--policy", type=Path, metavar="F", help=text)
    text = (
        "folder of the photographs: the one that was given to `label`, or the root that the store's image paths are "
        "relative to (default: where `label` found them, else the data root of the workspace that holds the store)"
    )
    add("--images", type=Path, metavar="ROOT", help=text)
    add("--checkpoint", type=Path, metavar="F", help="model for scale weights on demand")
    add("--compare", type=Path, metavar="STORE", help="second store to swipe against")
    add("--compare-policy", type=Path, metavar="F", help="second policy to swipe against")
    text = (
        "where it saves, never over --policy (default: policies/NAME.json in a workspace, else STORE.policy.json; "
        "where that is --policy, with -2 behind the name)"
    )
    add("--save-policy", type=Path, metavar="F", help=text)
    add("--reviewer", default=None, metavar="NAME", help="name on review marks (default: the user's)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=8733, metavar="N", help="default: %(default)s; 0 = any free one")
    add("--token", metavar="T", help="secret that reading needs too; demanded beyond loopback")


def _port(text: str) -> int:
    # The kernel would take a larger port modulo 65536.
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Serve the page until the program is stopped."""
    # Imported here: the packages of the server take longer than `--help` may.
    from pipeline.review.session import Session, image_root, policy_target, start_policy
    from pipeline.workspace.registry import user_name

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    images = args.images if args.images is not None else image_root(args.store)
    if args.policy and args.save_policy and args.save_policy.resolve() == args.policy.resolve():
        # A measured policy is an output of `calibrate`: DVC may share its bytes with the cache.
        raise ConfigError(
            f"{args.save_policy}: would overwrite the policy it starts from",
            hint="leave --save-policy out, or give it the name of a new file",
        )
    policy, unfit = (args.policy, "") if args.policy else start_policy(args.store)
    if unfit:
        sys.stderr.write(f"note: no precision: {unfit}\n")
    session = Session(
        args.store,
        policy=policy,
        images=images,
        other=args.compare,
        other_policy=args.compare_policy,
        save_to=args.save_policy or policy_target(args.store, args.policy),
        reviewer=user_name() if args.reviewer is None else args.reviewer,
    )
    for view in (session.view, session.other):
        if view is not None and view.pictures.note:
            sys.stderr.write(f"note: {view.path}: {view.pictures.note}\n")
    for note in session.notes:
        sys.stderr.write(f"note: {note}\n")
    with needs_extra("ui"):
        from pipeline.page.server import ServeOptions, serve

    serve(session, ServeOptions(args.host, args.port, args.token, args.checkpoint))
    return 0
