"""Parameters of one night: checked before anything starts, and kept in a separate file.

A night never writes params.yaml. It writes the parameters of the night to work/nightly/params.yaml and names
that file in AUTOLABEL_PARAMS. The stages read it (`Workspace.params`), and so does DVC, which this module starts
(`python -m pipeline.night.parameters repro ...`). So dvc.lock states the values that made an output.
A killed night leaves nothing to undo: the variable ends with its processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.workspace.named_files import check_named_files
from pipeline.workspace.params import Params, over
from pipeline.workspace.workspace import PARAMS_OF_NIGHT, PARAMS_VARIABLE
from pipeline.workspace.yaml_text import Document, read_yaml

_FIRST = "calibrate"  # earlier trainings may be done, and the checkpoints that they started from deleted


@contextmanager
def parameters_of_night(root: Path, changes: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block this process and its children use the parameters of this night.

    Args:
        root: the workspace.
        changes: values by dotted key that replace those of params.yaml for this night.

    Raises:
        ConfigError: an unknown key, a bad value, or a missing file that a value names.
    """
    params, night = root / "params.yaml", root / PARAMS_OF_NIGHT
    document = read_yaml(params)
    set_keys(document.values, changes)
    try:
        checked = Document(Path("parameters of this run"), document.values) if changes else document
        check_named_files(root, Params.parse(checked), _FIRST)
    except ConfigError:
        Params.load(params)  # an error in params.yaml itself names its line
        raise
    text = json.dumps(document.values, indent=1, ensure_ascii=False)  # JSON is YAML that all parsers read alike
    atomic.write_bytes(night, text.encode() if changes else params.read_bytes())
    before = os.environ.get(PARAMS_VARIABLE)
    os.environ[PARAMS_VARIABLE] = str(night)
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARAMS_VARIABLE]
        else:
            os.environ[PARAMS_VARIABLE] = before


def set_keys(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set dotted keys ("pseudo_label.threshold") in values of params.yaml; keys that a mapping does not name stay.

    Raises:
        ConfigError: a key below a value that is not a section.
    """
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        section: Any = values
        for part in parents:
            section = section.setdefault(part, {}) if isinstance(section, dict) else section
        if not isinstance(section, dict):
            raise ConfigError(f"parameter {dotted!r}: {'.'.join(parents)} is a value in params.yaml, not a section")
        section[last] = over(section, {last: value})[last]


def main(arguments: list[str]) -> int:
    """Run `dvc ARGUMENTS` in the current folder; DVC reads the night's file where it would read params.yaml."""
    from dvc.utils import serialize

    night, params, load = os.environ[PARAMS_VARIABLE], str(Path.cwd() / "params.yaml"), serialize.load_path

    def load_of_night(path: str, fs: Any, **options: Any) -> Any:
        return load(night if os.path.abspath(path) == params else path, fs, **options)  # noqa: PTH100 - links stay

    serialize.load_path = load_of_night  # before other modules import it by name
    from dvc.cli import main as dvc

    return int(dvc(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
