"""End worker and server of a workspace: `make orchestrate-stop`. The stage of a run in progress saves its state."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError, HmsaError
from pipeline.nightly.services import Services


def down(services: Services) -> list[str]:
    """Stop the worker (its flow ends with it, the stage saves a checkpoint), then the server."""
    if not services.folder.is_dir() and not (services.workspace / "dvc.yaml").exists():
        raise ConfigError(f"{services.workspace}: not a workspace (no dvc.yaml)", hint="name the one that is running")
    said = [f"{n} stopped" if services.stop(n) else f"{n} was not running" for n in ("worker", "server")]
    services.forget()
    return said


def main(argv: list[str] | None = None) -> int:
    """Command line of `make orchestrate-stop`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path())
    args = parser.parse_args(argv)
    try:
        lines = down(Services(args.workspace))
    except HmsaError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
