"""Print a script with which a shell completes commands, options and files.

autolabel completion bash > ~/.local/share/bash-completion/completions/autolabel
autolabel completion zsh > "${fpath[1]}/_autolabel"
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from hmsa_core.io.errors import needs_extra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument of `autolabel completion`."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from pipeline.cli.main import COMMANDS

    with needs_extra("dvc"):  # which needs it, too
        import shtab
    whole = argparse.ArgumentParser(prog="autolabel")
    commands = whole.add_subparsers()
    for name, (module, text) in COMMANDS.items():
        parser = commands.add_parser(name, help=text)
        import_module(module).add_arguments(parser)
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab looks for
    sys.stdout.write(shtab.complete(whole, args.shell) + "\n")
    return 0
