"""Settings as text: a profile's params.yaml, all settings with explanations and origins, and differences."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmsa_core.config import Section
from hmsa_core.data.source import OnlyFor, SourceSpec
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, did_you_mean
from pipeline.workspace.params import PROFILES, Params, profile_file
from pipeline.workspace.table import TABLE
from pipeline.workspace.workspace import SETTINGS, Workspace
from pipeline.workspace.yaml_text import dump_editable, load_editable

_COLUMN = 36  # column at which explanations begin
_RESOLVED = """\
# All settings in effect: params.yaml over the program's defaults. DVC compares these values; edit params.yaml.
"""
# Texts that YAML reads unchanged without quotes, also in lists and mappings of one line.
_PLAIN_TEXT = re.compile(r"(?!(?:null|true|false)$)[A-Za-z/][\w./+-]*(?: [\w./+-]+)*", re.ASCII | re.IGNORECASE)
Key = tuple[str, ...]
# Values in place of the runtime's `auto` where results must be the same on every processor.
_PINNED = {"threads": 1, "precision": "fp32", "channels_last": True}
_WATCHED = tuple(dict.fromkeys(key.partition(".")[0] for row in TABLE for key in row.watched))


def profile_text(profile: str, roots: Mapping[str, str] | None = None, *, deterministic: bool = False) -> str:
    """The params.yaml that `autolabel init` writes: the profile, which is self-contained.

    Args:
        profile: one of `PROFILES`.
        roots: replace `data.NAME.root`, by NAME.
        deterministic: write values instead of `auto`, so that no setting of the runtime depends on the machine.
    """
    document = load_editable(profile_file(profile).read_text("utf-8"))
    for name, root in (roots or {}).items():
        document["data"][name]["root"] = root
    sections = (document, *(section for section in document.values() if isinstance(section, Mapping)))
    for runtime in [section["runtime"] for section in sections if deterministic and "runtime" in section]:
        runtime.update({key: _PINNED[key] for key, value in runtime.items() if value == "auto" and key in _PINNED})
    return dump_editable(document)


def resolved_text(params: Params) -> str:
    """Text of the file of settings that DVC compares: values that the stages depend on, and each stage's version."""
    versions = "".join(f"  {row.section}: {row.version}\n" for row in TABLE)
    return f"{_RESOLVED}{annotated(params, only=_WATCHED)}\nversions:\n{versions}"


def write_resolved(ws: Workspace) -> None:
    """Update a workspace's file of settings; a file with the same content is not rewritten."""
    path, text = ws.path(SETTINGS), resolved_text(ws.params)
    if not path.is_file() or path.read_text("utf-8", errors="replace") != text:
        atomic.write_text(path, text)


def annotated(params: Params, notes: Mapping[Key, str] | None = None, only: Collection[str] = ()) -> str:
    """Settings as a params.yaml; each line ends with the setting's text of `notes` (`origins`) and its description.

    Args:
        params: the settings.
        notes: text for a key, placed before the description of the key.
        only: sections to write; empty = all.
    """
    about = {row.section: f"{row.name}: {row.description}" for row in TABLE}
    lines: list[str] = []
    for name, info in type(params).model_fields.items():
        value = getattr(params, name)
        if only and name not in only:
            continue
        if isinstance(value, Section):
            lines += ["", f"# {about.get(name) or info.description}", f"{name}:"]
            lines += _section(value, (name,), notes or {})
        else:
            lines += _leaf((name,), value, info.description or "", notes or {})
    return "\n".join(lines) + "\n"


def _section(section: BaseModel, at: Key, notes: Mapping[Key, str]) -> Iterator[str]:
    for name, value in _shown(section):
        described = type(section).model_fields[name].description or ""
        key = (*at, name)
        if isinstance(value, Section):
            yield _line(key, "", "")
            yield from _section(value, key, notes)
        else:
            yield from _leaf(key, value, described, notes)


def _shown(section: BaseModel) -> Iterator[tuple[str, Any]]:
    """Fields and values of a section; of a data source those that its layout reads, or that are set."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        kinds = next((mark for mark in info.metadata if isinstance(mark, OnlyFor)), None)
        is_read = kinds is None or (isinstance(section, SourceSpec) and section.kind in kinds)
        if is_read or (kinds and value != info.get_default(call_default_factory=True)):
            yield name, value


def _leaf(key: Key, value: Any, described: str, notes: Mapping[Key, str]) -> Iterator[str]:
    described = " ".join(filter(None, (notes.get(key, ""), described)))
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        yield _line(key, "", described)
        yield from (f"{'  ' * len(key)}- {as_yaml(row)}" for row in value)
    else:
        yield _line(key, f" {as_yaml(value)}", described)


def _line(key: Key, value: str, described: str) -> str:
    text = f"{'  ' * (len(key) - 1)}{key[-1]}:{value}"
    return f"{text:{_COLUMN - 2}}  # {described}" if described else text


def as_yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_yaml(k)}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return value
    # JSON escapes a character above U+FFFF in two parts, which YAML reads as two characters.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))


def _flat(section: BaseModel, at: Key = (), *, defaults: bool = False) -> dict[Key, Any]:
    """{key: value} of all settings that are shown; with `defaults` the default values of the code, where they exist."""
    found: dict[Key, Any] = {}
    for name, value in _shown(section):
        info = type(section).model_fields[name]
        if isinstance(value, Section):
            found |= _flat(value, (*at, name), defaults=defaults)
        elif not defaults:
            found[*at, name] = value
        elif not info.is_required():
            found[*at, name] = info.get_default(call_default_factory=True)
    return found


def origins(params: Params) -> dict[Key, str]:
    """Origin of each value in effect: `(default)` of the code, `(profile)`, or `(here)`, this workspace."""
    known = {"(default)": _flat(params, defaults=True)}
    if params.profile in PROFILES:
        known["(profile)"] = _flat(Params.of_profile(params.profile))
    return {
        key: next((origin for origin, of in known.items() if key in of and of[key] == value), "(here)")
        for key, value in _flat(params).items()
    }


def other_settings(name: str, params: Params) -> dict[Key, Any]:
    """Settings that `config diff NAME` compares with: `defaults`, a profile, a params.yaml or the folder of one.

    Raises:
        ConfigError: none of these, or a params.yaml with a mistake.
    """
    if name == "defaults":
        return _flat(params, defaults=True)
    if name in PROFILES:
        return _flat(Params.of_profile(name))
    path = Path(name) / "params.yaml" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        known = ("defaults", *PROFILES)
        hint = did_you_mean(name, known, f"expected a params.yaml or one of {', '.join(known)}")
        raise ConfigError(f"{name}: no such settings; {hint}")
    return _flat(Params.load(path))


def differences(params: Params, other: Mapping[Key, Any]) -> Iterator[str]:
    """One line per differing setting, `key: value in other -> value in params`; a dash stands for a missing key."""
    current = _flat(params)
    for key in {**other, **current}:
        if key in current and key in other and current[key] == other[key]:
            continue
        other_text, current_text = (as_yaml(side[key]) if key in side else "-" for side in (other, current))
        yield f"{'.'.join(key)}: {other_text} -> {current_text}"
