"""Parameters of one run: params.yaml is changed for its length and restored, whatever ends it.

DVC decides by the file what has to run again, so the file must say what a run was made with. The
original lies in work/nightly/params.saved.yaml meanwhile; the next start restores it if the run was killed.
What a person wrote into params.yaml meanwhile stays: then only the run's own keys are set back. Where params.yaml
is a link, the file that it leads to is changed, and the link stays.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError, IntegrityError, one_line
from pipeline.named_files import check_named_files
from pipeline.nightly.leftover import SAVED
from pipeline.params import Params
from pipeline.strict_yaml import read_yaml

__all__ = ["apply", "overridden", "restore"]

_FIRST = "calibrate"  # the trainings before may be done and what they started from gone
_WRITTEN = "work/nightly/params.written.json"  # {"text": what the run wrote, "keys": the dotted keys it changed}
_REPLACED = "work/nightly/params.replaced.yaml"  # what was undone while nobody knew what the run had written
_NO_YAML = (YAMLError, ValueError, RecursionError)  # what comes of a text that is none; bytes that are no UTF-8, too


def restore(root: Path) -> bool:
    """Undo what a run changed; True when there was something to undo.

    Raises:
        ConfigError: somebody edited params.yaml meanwhile, and it cannot be read any more.
        IntegrityError: what the run wrote is not known any more, and params.yaml may be somebody's edit.
    """
    saved, params = root / SAVED, _params_file(root)
    if not saved.exists():
        return False
    original = saved.read_bytes().decode("utf-8")  # not read_text(): line breaks come back as they were
    try:
        now = params.read_bytes().decode("utf-8") if params.exists() else original
    except UnicodeDecodeError as error:
        raise _unreadable(error) from error
    try:
        text, keys = _read_written(root)
    except IntegrityError:
        if not _differs_in_values_alone(now, original):
            raise
        # As a run would have left it; a person may have typed one of these values all the same.
        atomic.write_text(root / _REPLACED, now)
        text, keys = now, []
    if text and now not in (text, original):
        original = _set_back(now, original, keys)
    atomic.write_text(params, original)
    saved.unlink()
    (root / _WRITTEN).unlink(missing_ok=True)
    return True


def _params_file(root: Path) -> Path:
    """The file behind params.yaml: a link would be replaced by a file."""
    return (root / "params.yaml").resolve()


def _read_written(root: Path) -> tuple[str, list[str]]:
    """What the run wrote and which keys it changed; nothing where that was not kept."""
    path = root / _WRITTEN
    if not path.exists():
        return "", []
    mend = f"`rm {_WRITTEN}` puts back {SAVED} as it is, `rm {SAVED}` keeps params.yaml as it is: one of them"
    try:
        value = atomic.read_json(path)
    except HmsaError as error:
        raise IntegrityError(error.message, hint=mend) from error
    text, keys = value.get("text"), value.get("keys")
    if not isinstance(text, str) or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise IntegrityError(f"{path}: is not what a night writes", hint=mend)
    return text, keys


def _differs_in_values_alone(text: str, original: str) -> bool:
    """Whether a text is the original with other values, comments and all: what `apply` leaves behind."""
    yaml = _yaml()
    try:
        now, before = _leaves(_load(yaml, text)), _leaves(_load(yaml, original))
        changes = {key: value for key, value in now.items() if before.get(key) != value}
        return text == original or (now.keys() == before.keys() and apply(original, changes) == text)
    except (*_NO_YAML, HmsaError):
        return False


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys; lists stay whole."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _leaves(value, f"{prefix}.{key}".strip(".")).items()}


def _set_back(text: str, original: str, dotted_keys: list[str]) -> str:
    """A person's text with the run's own keys as they were before it."""
    yaml = _yaml()
    try:
        tree, before = _load(yaml, text), _load(yaml, original)
    except _NO_YAML as error:
        raise _unreadable(error) from error
    for dotted in dotted_keys:
        *parents, last = dotted.split(".")
        here, there = tree, before
        for part in parents:
            if not isinstance(here, dict):
                break
            here, there = here.get(part, {}), there.get(part, {})
        if not isinstance(here, dict) or not isinstance(there, dict):
            raise ConfigError(
                f"params.yaml was edited during a run and {'.'.join(parents)} is no section now",
                hint=f"mend it; the text from before the run is {SAVED}",
            )
        if last in there:
            here[last] = there[last]
        else:
            here.pop(last, None)
    return _dump(yaml, tree, text)


def _unreadable(error: Exception) -> ConfigError:
    return ConfigError(
        f"params.yaml was edited during a run and is no YAML text now: {one_line(error)}",
        hint=f"mend it; the text from before the run is {SAVED}",
    )


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)  # as the profiles are
    # As people write it; the round trip would leave nothing behind the colon.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _load(yaml: YAML, text: str) -> Any:
    return yaml.load(text.replace("\r\n", "\n"))


def _dump(yaml: YAML, tree: Any, like: str) -> str:
    """A tree as text, with the line breaks of the text that it came from: the round trip keeps a part of them."""
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue().replace("\n", "\r\n" if "\r\n" in like else "\n")


def apply(text: str, changes: Mapping[str, Any]) -> str:
    """Set dotted keys ("pseudo_label.threshold") in a params.yaml text; comments stay where they are.

    Raises:
        ConfigError: a key that is not there; the line names it.
    """
    yaml = _yaml()
    tree = _load(yaml, text)
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
    return _dump(yaml, tree, text)


@contextmanager
def overridden(root: Path, changes: Mapping[str, Any]) -> Iterator[None]:
    """Change params.yaml inside the block; values are checked before anything is written."""
    restore(root)
    params = _params_file(root)
    if not changes:
        check_named_files(root, Params.load(params), _FIRST)
        yield
        return
    original = params.read_bytes()
    try:
        changed = apply(original.decode("utf-8"), changes)
    except _NO_YAML as error:
        read_yaml(params)  # tells the line; not before, for these changes may mend a value of the file
        raise ConfigError(f"{params}: not a YAML text ({one_line(error)})") from error
    trial = root / "work" / "nightly" / "params.trial.yaml"
    atomic.write_text(trial, changed)
    try:
        check_named_files(root, Params.load(trial), _FIRST)
    except ConfigError as error:
        Params.load(params)  # a mistake of the file's own is told with the line on which it stands
        # The trial is gone when somebody reads this, and what is wrong in it stands in no file.
        told = re.sub(rf"{re.escape(str(trial))}(:\d+)?", "parameters of this run", error.message)
        raise ConfigError(told, hint=error.hint) from error
    finally:
        trial.unlink()
    atomic.write_json(root / _WRITTEN, {"text": changed, "keys": list(changes)})
    atomic.write_bytes(root / SAVED, original)
    atomic.write_text(params, changed)
    try:
        yield
    finally:
        restore(root)
