"""Show the settings in effect with their explanations, or what differs from others.

show [SECTION]  Print the settings in effect, each with its description and origin: (default), (profile) or (here).
diff [OTHER]    Print what differs, one line per setting: key: value there -> value here. OTHER is `defaults`, a
                profile or a params.yaml. Without it, the workspace is compared with its own profile.
resolve         Write settings.yaml, all settings in effect, whose values DVC compares (the first stage of dvc.yaml).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError, did_you_mean
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel config`."""
    add = parser.add_argument
    add("action", choices=("show", "diff", "resolve"))
    text = "show: a section; diff: defaults, a profile, a params.yaml or its folder"
    add("other", nargs="?", metavar="SECTION|OTHER", help=text)
    add("--workspace", type=Path, metavar="DIR", help="default: the current folder or one above it")
    add("--profile", metavar="P", help="the settings of a profile instead of a workspace's")
    add("--program", help=argparse.SUPPRESS)  # for dvc.yaml: DVC must notice new defaults and versions


def run(args: argparse.Namespace) -> int:
    """Print the settings, or the differences."""
    from pipeline.workspace.params import PROFILES, Params
    from pipeline.workspace.settings import annotated, differences, origins, other_settings, write_resolved

    if args.profile is not None and args.profile not in PROFILES:
        raise ConfigError(f"unknown profile {args.profile!r}: expected one of {', '.join(PROFILES)}")
    if args.action == "resolve":
        if args.profile:
            raise ConfigError("config resolve: takes no --profile, it writes the workspace's settings.yaml")
        from pipeline.workspace.dvc_yaml import check_dvc_yaml
        from pipeline.workspace.named_files import check_roots

        ws = Workspace.find(args.workspace)
        check_dvc_yaml(ws.path("dvc.yaml"), ws.params)
        check_roots(ws)  # DVC would say only that a path is missing
        write_resolved(ws)
        return 0
    params = Params.of_profile(args.profile) if args.profile else Workspace.find(args.workspace).params
    if args.action == "show":
        known = tuple(Params.model_fields)
        if args.other not in (None, *known):
            hint = did_you_mean(args.other, known, f"the sections are: {', '.join(known)}")
            raise ConfigError(f"no section {args.other!r}; {hint}")
        sys.stdout.write(annotated(params, origins(params), only=(args.other,) if args.other else ()).lstrip("\n"))
        return 0
    other = args.other or (params.profile if params.profile in PROFILES else "defaults")
    found = list(differences(params, other_settings(other, params)))
    sys.stdout.write("".join(f"{line}\n" for line in found))
    if not found:
        sys.stderr.write(f"no setting differs from {args.other or f'profile {params.profile}'}\n")
    return 0
