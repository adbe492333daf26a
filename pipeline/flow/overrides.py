"""Parameters of one run: params.yaml is changed for its length and restored, whatever ends it.

DVC decides by the file what has to run again, so the file must say what a run was made with. The
original lies in work/nightly/params.saved.yaml meanwhile; the next start restores it if the run was killed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from hmsa_core import atomic
from hmsa_core.errors import ConfigError
from pipeline.params import Params

__all__ = ["apply", "overridden", "restore"]

_SAVED = "work/nightly/params.saved.yaml"


def restore(root: Path) -> bool:
    """Undo what a killed run left changed; True when there was something to undo."""
    saved = root / _SAVED
    if not saved.exists():
        return False
    atomic.write_bytes(root / "params.yaml", saved.read_bytes())
    saved.unlink()
    return True


def apply(text: str, changes: Mapping[str, Any]) -> str:
    """Set dotted keys ("pseudo_label.threshold") in a params.yaml text; comments stay where they are.

    Raises:
        ConfigError: a key that is not there; the line names it.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    tree = yaml.load(text)
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        here = tree
        for part in parents:
            if not isinstance(here, dict) or part not in here:
                raise ConfigError(f"parameter {dotted!r}: params.yaml has no section {part!r}")
            here = here[part]
        if not isinstance(here, dict):
            raise ConfigError(f"parameter {dotted!r}: {'.'.join(parents)} is a value in params.yaml, not a section")
        here[last] = value
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


@contextmanager
def overridden(root: Path, changes: Mapping[str, Any]) -> Iterator[None]:
    """Change params.yaml inside the block; values are checked before anything is written."""
    restore(root)
    params = root / "params.yaml"
    if not changes:
        _check_policy(root, Params.load(params))
        yield
        return
    original = params.read_bytes()
    changed = apply(original.decode("utf-8"), changes)
    trial = root / "work" / "nightly" / "params.trial.yaml"
    atomic.write_text(trial, changed)
    try:
        _check_policy(root, Params.load(trial))
    finally:
        trial.unlink()
    atomic.write_bytes(root / _SAVED, original)
    atomic.write_text(params, changed)
    try:
        yield
    finally:
        restore(root)


def _check_policy(root: Path, params: Params) -> None:
    """A policy file that is not there is told now, not by pseudo-label after hours of training."""
    threshold = params.pseudo_label.threshold
    if isinstance(threshold, str) and threshold != "policy" and not (root / Path(threshold).expanduser()).is_file():
        raise ConfigError(
            f"pseudo_label.threshold: {threshold} is not there", hint="give a file relative to the workspace"
        )
