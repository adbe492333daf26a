"""Entry point of `autolabel`: parse, import one subcommand, turn errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from hmsa_core import __version__
from hmsa_core.io.errors import ConfigError, HmsaError, did_you_mean, translate_os_error

# Subcommand -> (module, help). A module has add_arguments(parser) and run(args) -> int. Only the chosen module
# is imported, so that `autolabel --help` is instant and does not import torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("pipeline.cli.init", "make a workspace: params.yaml, dvc.yaml, git and DVC set up"),
    "demo-data": ("pipeline.cli.demo_data", "generate the synthetic street scenes of a workspace"),
    "config": ("pipeline.cli.config", "show the settings in effect, or what differs from a profile or others"),
    "stage": ("pipeline.cli.stage", "run one stage of the chain (what dvc.yaml calls)"),
    "run": ("pipeline.cli.run", "run the stages in order without DVC; goes on where it was interrupted"),
    "join": ("pipeline.cli.join", "make this machine a node of a workspace's jobs over several nodes"),
    "adopt": ("pipeline.cli.adopt", "find out how public networks label your images best, as one teacher file"),
    "label": ("pipeline.cli.label", "label a folder of images with a checkpoint into a label store"),
    "advise": ("pipeline.cli.advise", "what calibration shows of the teacher, and which classes to label by hand"),
    "inspect": ("pipeline.cli.inspect", "what a threshold keeps, per class and image, from statistics alone"),
    "serve": ("pipeline.cli.serve", "the web page: drag the threshold, watch the mask"),
    "certify": ("pipeline.cli.certify", "thresholds with a promise, from answers about drawn pixels"),
    "ask": ("pipeline.cli.ask", "which class is this region? answers become training labels"),
    "report": ("pipeline.cli.report", "one report over many workspaces: figures, gates, thresholds"),
    "diff": ("pipeline.cli.diff", "what changed between two label stores"),
    "verify": ("pipeline.cli.verify", "check every byte of a label store"),
    "evaluate": ("pipeline.cli.evaluate", "score a checkpoint on a folder of images and labels"),
    "predict": ("pipeline.cli.predict", "label, confidence and scale weights of images as pictures"),
    "export": ("pipeline.cli.export", "write a label store as files of other tools"),
    "export-model": ("pipeline.cli.export_model", "write a checkpoint as ONNX or torch.export for other runtimes"),
    "import": ("pipeline.cli.import_", "read labels or corrections of other tools into a label store"),
    "import-checkpoint": ("pipeline.cli.import_checkpoint", "convert a released .pth to safetensors + JSON"),
    "models": ("pipeline.cli.models", "list, promote or roll back registered models"),
    "doctor": ("pipeline.cli.doctor", "check machine, versions, disk, locks, stores; say what fixes them"),
    "completion": ("pipeline.cli.completion", "print a script with which a shell completes commands and files"),
}


class _Parser(argparse.ArgumentParser):
    """Parser that reports wrong arguments in one line, as all errors of the program, not as a usage block."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}\nhint: see `{self.prog} --help`\n")


def _command(name: str) -> str:
    if name in COMMANDS:
        return name
    near = did_you_mean(name, COMMANDS, "", cutoff=0.6)
    raise argparse.ArgumentTypeError(f"unknown command {name!r}{near and f', {near}'}")


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:18} {text}" for name, (_, text) in COMMANDS.items())
    parser = _Parser(
        prog="autolabel",
        description="Auto-labelling for semantic segmentation with measured thresholds.",
        epilog=f"commands:\n{lines}\n\n`autolabel COMMAND --help` explains one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"autolabel {__version__}")
    parser.add_argument("command", metavar="COMMAND", nargs="?", type=_command)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; bad input gives one line on standard error and the error's exit status."""
    if argv is None:
        if sys.getfilesystemencoding() != "utf-8":
            return _again_in_utf8()
        for stream in (sys.stdout, sys.stderr):  # PYTHONIOENCODING=latin-1 has no bars and no names in Chinese
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = _parser()
    chosen = parser.parse_args(argv)
    if chosen.command is None:
        parser.print_help(sys.stderr)
        return 2
    return run_command(f"autolabel {chosen.command}", COMMANDS[chosen.command][0], chosen.rest)


def run_command(prog: str, module: ModuleType | str, rest: Sequence[str]) -> int:
    """Run a module with `add_arguments(parser)` and `run(args)`; an error gives one line and its exit status."""
    try:
        module = importlib.import_module(module) if isinstance(module, str) else module
        args = parser_of(prog, module).parse_args(rest)
        args.command_line = shlex.join([*prog.split(), *rest])
        _refuse_addresses(args)
        status = module.run(args)
        sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("hmsa_core", "pipeline")):
            raise
        return _report(ConfigError(f"{error.name} is not installed", hint="pip install hmsa-autolabel"))
    except HmsaError as error:
        return _report(error)
    except BrokenPipeError:
        # `autolabel inspect ... | head` closed the output: not an error, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _report(translate_os_error(error, f"{prog}:"))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return int(status or 0)


def parser_of(prog: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of a command's module."""
    parser = _Parser(
        prog=prog, description=module.__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return parser


def _refuse_addresses(args: argparse.Namespace) -> None:
    """Raise ConfigError for an address in place of a local path: `Path` would make a folder `s3:` of the address."""
    for value in vars(args).values():
        if isinstance(value, Path) and re.match(r"[a-z][a-z0-9+]*:/", str(value)):
            address = str(value).replace(":/", "://", 1)
            raise ConfigError(f"{address}: an address is not possible here", hint="give a local folder or file")


def _again_in_utf8() -> int:
    """Start this very command again in Python's UTF-8 mode.

    Image names go into indexes and stores, so every locale must read `münchen.png` as the same name.
    """
    if os.environ.get("PYTHONUTF8") == "1":  # the mode is overruled, so starting again would never end
        text = f"Python reads names of files as {sys.getfilesystemencoding()}"
        return _report(ConfigError(text, hint="leave out -E, -I and -X utf8=0"))
    os.environ["PYTHONUTF8"] = "1"  # for the processes of a job, too
    return os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def _report(error: HmsaError) -> int:
    if os.environ.get("AUTOLABEL_TRACEBACK"):
        traceback.print_exception(error)
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
