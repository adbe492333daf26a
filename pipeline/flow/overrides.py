"""Parameters of one run: params.yaml is changed for its length and restored, whatever ends it.

DVC decides by the file what has to run again, so the file must say what a run was made with. The
original lies in work/nightly/params.saved.yaml meanwhile; the next start restores it if the run was killed.
What a person wrote into params.yaml meanwhile stays: then only the run's own keys are set back.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hmsa_core import atomic
from hmsa_core.errors import ConfigError, one_line
from pipeline.named_files import check_named_files
from pipeline.params import Params

__all__ = ["apply", "overridden", "restore"]

_FIRST = "calibrate"  # the trainings before may be done and what they started from gone
_SAVED = "work/nightly/params.saved.yaml"
_WRITTEN = "work/nightly/params.written.json"  # {"text": what the run wrote, "keys": the dotted keys it changed}


def restore(root: Path) -> bool:
    """Undo what a run changed; True when there was something to undo.

    Raises:
        ConfigError: somebody edited params.yaml meanwhile, and it cannot be read any more.
    """
    saved, params = root / _SAVED, root / "params.yaml"
    if not saved.exists():
        return False
    written = atomic.read_json(root / _WRITTEN) if (root / _WRITTEN).exists() else {}
    original = saved.read_text("utf-8")
    now = params.read_text("utf-8") if params.exists() else original
    if written and now not in (written["text"], original):
        original = _set_back(now, original, written["keys"])
    atomic.write_text(params, original)
    saved.unlink()
    (root / _WRITTEN).unlink(missing_ok=True)
    return True


def _set_back(text: str, original: str, dotted_keys: list[str]) -> str:
    """A person's text with the run's own keys as they were before it."""
    yaml = _yaml()
    try:
        tree, before = yaml.load(text), yaml.load(original)
    except YAMLError as error:
        raise ConfigError(
            f"params.yaml was edited during a run and is no YAML text now: {one_line(error)}",
            hint=f"mend it; the text from before the run is {_SAVED}",
        ) from error
    for dotted in dotted_keys:
        *parents, last = dotted.split(".")
        here, there = tree, before
        for part in parents:
            here, there = here.get(part, {}), there.get(part, {})
        if last in there:
            here[last] = there[last]
        else:
            here.pop(last, None)
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)  # as the profiles are
    # As people write it; the round trip would leave nothing behind the colon.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def apply(text: str, changes: Mapping[str, Any]) -> str:
    """Set dotted keys ("pseudo_label.threshold") in a params.yaml text; comments stay where they are.

    Raises:
        ConfigError: a key that is not there; the line names it.
    """
    yaml = _yaml()
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
        check_named_files(root, Params.load(params), _FIRST)
        yield
        return
    original = params.read_bytes()
    changed = apply(original.decode("utf-8"), changes)
    trial = root / "work" / "nightly" / "params.trial.yaml"
    atomic.write_text(trial, changed)
    try:
        check_named_files(root, Params.load(trial), _FIRST)
    finally:
        trial.unlink()
    atomic.write_json(root / _WRITTEN, {"text": changed, "keys": list(changes)})
    atomic.write_bytes(root / _SAVED, original)
    atomic.write_text(params, changed)
    try:
        yield
    finally:
        restore(root)
