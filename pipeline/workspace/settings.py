"""Settings as text: the annotated params.yaml of a profile or workspace, where values come from, and what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hmsa_core.config import Section
from hmsa_core.data.source import OnlyFor, SourceSpec
from hmsa_core.io.errors import ConfigError, did_you_mean
from pipeline.workspace.params import PROFILES, Params, profile_file
from pipeline.workspace.strict_yaml import is_plain_text, read_yaml
from pipeline.workspace.table import TABLE

_COLUMN = 36  # where explanations begin
_EVERY_KEY = """\
# Every key is explained at its end of line. An unknown key is refused with the nearest valid name; a missing one takes
# the default of the code, the paper's value where there is one. `autolabel config diff` prints what was changed.
"""
Key = tuple[str, ...]
# What `auto` of the runtime becomes where results have to be the same on every processor.
_PINNED = {"threads": "1", "precision": "fp32", "channels_last": "true"}


def profile_text(profile: str, data: Mapping[str, Any] | None = None, *, deterministic: bool = False) -> str:
    """The params.yaml that `autolabel init` writes: all settings of a profile with their explanations.

    Args:
        profile: one of `PROFILES`.
        data: replaces what the profile says in section `data`.
        deterministic: no setting of the runtime is left to the machine: numbers instead of `auto`.
    """
    lines = profile_file(profile).read_text("utf-8").splitlines(keepends=True)
    head = "".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    text = annotated(Params.of_profile(profile, data))
    for name, value in _PINNED.items() if deterministic else ():
        text = re.sub(rf"(?m)^( +{name}: )auto\b", rf"\g<1>{value}", text)
    return head + _EVERY_KEY + "\n" + text


def annotated(params: Params, told: Mapping[Key, str] | None = None) -> str:
    """All settings as a params.yaml, each with its description at its end of line, and `told` (`origins`) before it."""
    about = {row.section: f"{row.name}: {row.description}" for row in TABLE}
    lines: list[str] = []
    for name, info in type(params).model_fields.items():
        value = getattr(params, name)
        if isinstance(value, Section):
            lines += ["", f"# {about.get(name) or info.description}", f"{name}:"]
            lines += _section(value, (name,), told or {})
        else:
            lines += _leaf((name,), value, info.description or "", told or {})
    return "\n".join(lines) + "\n"


def _section(section: BaseModel, at: Key, told: Mapping[Key, str]) -> Iterator[str]:
    for name, value in _shown(section):
        described = type(section).model_fields[name].description or ""
        key = (*at, name)
        if isinstance(value, Section):
            yield _line(key, "", "")
            yield from _section(value, key, told)
        else:
            yield from _leaf(key, value, "" if at == ("versions",) else described, told)


def _shown(section: BaseModel) -> Iterator[tuple[str, Any]]:
    """Fields and values; of a data source those that its layout reads."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        kinds = next((mark for mark in info.metadata if isinstance(mark, OnlyFor)), None)
        is_read = kinds is None or (isinstance(section, SourceSpec) and section.kind in kinds)
        if is_read or (kinds and value != info.get_default(call_default_factory=True)):
            yield name, value


def _leaf(key: Key, value: Any, described: str, told: Mapping[Key, str]) -> Iterator[str]:
    described = " ".join(filter(None, (told.get(key, ""), described)))
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        yield _line(key, "", described)
        yield from (f"{'  ' * len(key)}- {_yaml(row)}" for row in value)
    else:
        yield _line(key, f" {_yaml(value)}", described)


def _line(key: Key, value: str, described: str) -> str:
    text = f"{'  ' * (len(key) - 1)}{key[-1]}:{value}"
    return f"{text:{_COLUMN - 2}}  # {described}" if described else text


def _yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str) and is_plain_text(value):
        return value
    # JSON's own escapes above U+FFFF are two, of which YAML makes two characters.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))


def _flat(section: BaseModel, at: Key = (), *, defaults: bool = False) -> dict[Key, Any]:
    """{key: value} of all settings that are shown; with `defaults` those of the code, where there are some."""
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
    """Where each value in effect comes from: `(default)` of the code, `(profile)`, or `(here)`, this workspace."""
    known = {"(default)": _flat(params, defaults=True), "(profile)": _flat(Params.of_profile(params.profile))}
    return {
        key: next((origin for origin, of in known.items() if key in of and of[key] == value), "(here)")
        for key, value in _flat(params).items()
    }


def other_settings(name: str, params: Params) -> dict[Key, Any]:
    """What `config diff NAME` compares with: `defaults`, a profile's name, or the path of a params.yaml or its folder.

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
    return _flat(Params.parse(read_yaml(path)))


def differences(params: Params, other: Mapping[Key, Any]) -> Iterator[str]:
    """A line for each setting that differs: `key: theirs -> ours`; a side without the key shows a dash."""
    ours = _flat(params)
    for key in {**other, **ours}:
        if key in ours and key in other and ours[key] == other[key]:
            continue
        theirs, mine = (_yaml(side[key]) if key in side else "-" for side in (other, ours))
        yield f"{'.'.join(key)}: {theirs} -> {mine}"
