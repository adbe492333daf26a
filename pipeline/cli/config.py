"""Show the settings in effect with their explanations, or what differs from others.

show          Print all settings of a workspace, each with its description and origin: (default), (profile) or (here).
diff [OTHER]  Print what differs, one line per setting: key: theirs -> ours. OTHER is `defaults`, a profile or a
              params.yaml. Without it, the workspace is compared with its own profile.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel config`."""
    add = parser.add_argument
    add("action", choices=("show", "diff"))
    add("other", nargs="?", metavar="OTHER", help="diff: defaults, a profile, a params.yaml or its folder")
    add("--workspace", type=Path, metavar="DIR", help="default: the current folder or one above it")
    add("--profile", metavar="P", help="the settings of a profile instead of a workspace's")


def run(args: argparse.Namespace) -> int:
    """Print the settings, or the differences."""
    from pipeline.workspace.params import PROFILES, Params
    from pipeline.workspace.settings import annotated, differences, origins, other_settings

    if args.profile is not None and args.profile not in PROFILES:
        raise ConfigError(f"unknown profile {args.profile!r}: expected one of {', '.join(PROFILES)}")
    params = Params.of_profile(args.profile) if args.profile else Workspace.find(args.workspace).params
    if args.action == "show":
        if args.other is not None:
            raise ConfigError(f"config show takes no {args.other!r}; did you mean --workspace {args.other}?")
        sys.stdout.write(annotated(params, origins(params)))
        return 0
    found = list(differences(params, other_settings(args.other or params.profile, params)))
    sys.stdout.write("".join(f"{line}\n" for line in found))
    if not found:
        sys.stderr.write(f"no setting differs from {args.other or f'profile {params.profile}'}\n")
    return 0
