"""Read a YAML file as DVC does (YAML 1.2, ruamel.yaml), with each key's line and one-line messages for mistakes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hmsa_core.io.errors import ConfigError, one_line

Key = tuple[str | int, ...]
_MAX_BYTES = 1 << 20  # a params file is a few kilobytes; anything larger is not one
_SCALARS = (bool, int, float, str)  # ruamel's scalars are subclasses that remember how they were written

# Clearer texts for messages of the parser that do not say what it expected.
_SYNTAX = {
    "could not find expected ':'": "expected `key: value`, found no `: ` after the key",
    "mapping values are not allowed here": (
        "expected one `key: value` a line, found a `:` too many or another indentation than that of the lines "
        "around it (a text that holds `: ` is put in quotes)"
    ),
    "found character '\\t' that cannot start any token": "expected spaces, found a tab",
    "mapping keys are not allowed here": "expected a value, found `? ` (a text that starts with it is put in quotes)",
    "sequence entries are not allowed here": (
        "expected a value, found `- `, a list's entry, on the line of its key "
        "(write [a, b], or each entry on its own line)"
    ),
}


@dataclass(frozen=True)
class Document:
    """A YAML mapping as plain Python values, and the line on which each key stands."""

    path: Path
    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """`file:line` of a key, or of the nearest parent that is in the file."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)


def dotted(key: Key) -> str:
    """A key as people write it: a.b.c."""
    return ".".join(str(part) for part in key)


def read_yaml(path: str | Path) -> Document:
    """Read one YAML mapping.

    Raises:
        ConfigError: missing or unreadable file, a syntax error, a duplicate key, an anchor or alias, a number
            that is not finite, or a document that is not a mapping. The message has the file's line number.
    """
    where = Path(path)
    try:
        raw = where.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    return parse_yaml(raw, where)


def parse_yaml(raw: bytes, where: Path) -> Document:
    """`read_yaml` of bytes that are, or will be, the file `where`."""
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{where}: {len(raw)} bytes; a params file has at most {_MAX_BYTES}")
    lines: dict[Key, int] = {}
    try:
        root = YAML().load(raw.decode("utf-8"))
        values = {} if root is None else _plain(root, (), lines)
    except _UnusableError as error:
        key = error.key
        raise ConfigError(f"{where}:{lines.get(key, 1)}: {dotted(key) or '(file)'}: {error.wrong}") from None
    except MarkedYAMLError as error:
        raise ConfigError(f"{where}:{_reason(error)}") from None
    except (YAMLError, ValueError) as error:  # not UTF-8, or a value that its tag cannot have
        raise ConfigError(f"{where}: not a YAML text ({one_line(error)})") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}:1: expected `key: value` lines, found {one_line(values)[:60]!r}")
    return Document(where, values, lines)


def load_editable(text: str) -> Any:
    """A YAML text with its comments, to be changed and written by `dump_editable`."""
    return _editor().load(text)


def dump_editable(document: Any) -> str:
    """Text of a document that `load_editable` read; unchanged parts stay as they were written."""
    out = StringIO()
    _editor().dump(document, out)
    return out.getvalue()


def _editor() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


class _UnusableError(Exception):
    def __init__(self, key: Key, wrong: str) -> None:
        super().__init__(wrong)
        self.key, self.wrong = key, wrong


def _plain(node: Any, key: Key, lines: dict[Key, int]) -> Any:
    """Plain values of a ruamel node; adds the line of each key and list entry below the node to `lines`."""
    anchor = getattr(node, "yaml_anchor", None)
    if (anchor is not None and anchor() is not None) or getattr(node, "merge", None):
        raise _UnusableError(key, "anchors and aliases (&, *, <<) are not supported: write the value out")
    if isinstance(node, CommentedMap):
        lines |= {(*key, str(name)): node.lc.key(name)[0] + 1 for name in node}
        return {str(name): _plain(value, (*key, str(name)), lines) for name, value in node.items()}
    if isinstance(node, CommentedSeq):
        lines |= {(*key, i): node.lc.item(i)[0] + 1 for i in range(len(node))}
        return [_plain(value, (*key, i), lines) for i, value in enumerate(node)]
    if isinstance(node, float) and not math.isfinite(node):
        raise _UnusableError(key, f"expected a finite number, found {float(node)}")
    if node is not None and not isinstance(node, _SCALARS):
        kind = type(node).__name__
        raise _UnusableError(key, f"expected a plain value, found a YAML {kind} (a text is put in quotes)")
    return next((scalar(node) for scalar in _SCALARS if isinstance(node, scalar)), None)


def _reason(error: MarkedYAMLError) -> str:
    """Line and reason of a syntax error."""
    mark, opened, problem = error.problem_mark, error.context_mark, one_line(error.problem or error)
    text = _SYNTAX.get(problem, f"{error.context}, {problem}" if problem.startswith("but ") else problem)
    if problem.startswith("expected <block end>"):
        text = "expected a line like the one before, found another indentation (or that one has no `: `)"
    elif problem == "could not find expected ':'":
        mark = opened or mark  # the line of the key; the parser misses the colon on a later line
    elif opened and re.search("flow|quoted", error.context or ""):
        text += f" (opened on line {opened.line + 1})"
    return f"{mark.line + 1 if mark else 0}: {text}"
