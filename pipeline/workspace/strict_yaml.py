"""Read YAML as YAML 1.2 does and refuse what hides mistakes: duplicate keys, anchors, NaN.

PyYAML speaks YAML 1.1, where `5e-4` is a string and `no` is false; DVC reads the same params.yaml with a
1.2 parser. Both must see the same values, so the scalar rules of the 1.2 core schema are used here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hmsa_core.io.errors import ConfigError, one_line

Key = tuple[str | int, ...]
_MAX_BYTES = 1 << 20  # a params file is a few kilobytes; anything larger is not one

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")

# PyYAML's messages that do not say what it wanted.
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

    @staticmethod
    def dotted(key: Key) -> str:
        """A key as people write it: a.b.c."""
        return ".".join(str(part) for part in key)

    def where(self, key: Key) -> str:
        """`file:line` of a key, or of the nearest parent that is in the file."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)


def is_plain_text(text: str) -> bool:
    """Whether a text can be written without quotes, in lists and mappings of one line too, and is read as itself."""
    reads_otherwise = any(rule.match(text) for rule in (_BOOL, _INT, _FLOAT, _NOT_FINITE, _NULL))
    return not reads_otherwise and re.fullmatch(r"[A-Za-z./][\w./+-]*(?: [\w./+-]+)*", text, re.ASCII) is not None


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
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{where}: {len(raw)} bytes; a params file has at most {_MAX_BYTES}")
    try:
        root = yaml.compose(raw.decode("utf-8"), Loader=_Loader)
        document = _Reader(where)
        values = document.value(root, ()) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}:{_told(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not a YAML text ({one_line(error)})") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected `key: value` lines, found {_describe(values)}")
    return Document(where, values, document.lines)


def _told(error: yaml.MarkedYAMLError) -> str:
    """Line and reason of what is no YAML."""
    mark, opened, problem = error.problem_mark, error.context_mark, one_line(error.problem or error)
    told = _SYNTAX.get(problem, problem)
    if problem.startswith("expected <block end>"):
        told = "expected a line like the one before, found another indentation (or that one has no `: `)"
    elif problem == "could not find expected ':'":
        mark = opened or mark  # where the key is; PyYAML misses its colon on a later line
    elif opened and re.search("flow|quoted", error.context or ""):
        told += f" (opened on line {opened.line + 1})"
    return f"{mark.line + 1 if mark else 0}: {told}"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser without its YAML 1.1 guesses about scalars, and without aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stub
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases (&, *) are not supported: write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


class _Reader:
    """Turns the node graph into values and notes lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, int] = {}

    def value(self, node: yaml.Node, key: Key) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {str(name.value): self._at(name, value, key) for name, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                self.lines[*key, i] = child.start_mark.line + 1
            return [self.value(child, (*key, i)) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return str(node.value)  # quoted: always text
        try:
            if node.tag not in ("tag:yaml.org,2002:str", "!"):
                raise ValueError(f"the YAML tag {node.tag} is not supported: write the plain value")
            return _plain(str(node.value))
        except ValueError as error:
            line = node.start_mark.line + 1
            raise ConfigError(f"{self.path}:{line}: {Document.dotted(key)}: {error}") from None

    def _at(self, name: yaml.Node, value: yaml.Node, key: Key) -> Any:
        """The value of a key of a mapping."""
        line, inner = name.start_mark.line + 1, (*key, name.value)
        if not isinstance(name, yaml.ScalarNode):
            raise ConfigError(f"{self.path}:{line}: a key must be a plain word")
        if inner in self.lines:
            first = self.lines[inner]
            raise ConfigError(f"{self.path}:{line}: {Document.dotted(inner)} is given twice (first on line {first})")
        self.lines[inner] = line
        return self.value(value, inner)


def _plain(text: str) -> Any:
    """The value of a scalar without quotes; ValueError for what is no usable number."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _NOT_FINITE.match(text):
        raise ValueError(f"expected a finite number, found {text}")
    if _INT.match(text):
        if len(text) > 30:
            raise ValueError(f"{text[:12]}... is too long for a number")
        return int(text)
    if not _FLOAT.match(text):
        return text
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is too large for a number")
    return float(text)


def _describe(value: object) -> str:
    kinds = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true/false"}
    return kinds.get(type(value), "nothing" if value is None else type(value).__name__)
