"""dvc.yaml of a workspace: written from the table of stages and the settings, compared with them, and renewed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hmsa_core.data.source import SourceSpec
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, one_line
from pipeline.workspace.params import DataConfig, Params, stages_of_chain
from pipeline.workspace.table import PRETRAIN_ROOT, TABLE, TARGET_ROOT, VERSIONS
from pipeline.workspace.workspace import SETTINGS
from pipeline.workspace.yaml_text import Document, dump_editable, load_editable

SETTINGS_STAGE = "settings"  # the first stage: it writes the file of settings that DVC compares for all others
_HEAD = Path(__file__).parent / "templates" / "dvc-head.txt"
_COMPARED = ("deps", "params", "outs")


def render_dvc_yaml(data: DataConfig) -> str:
    """Text of dvc.yaml from the table of stages; no stage depends on a root that is not there or not watched."""
    roots = {PRETRAIN_ROOT: [PRETRAIN_ROOT] if data.pretrain else [], TARGET_ROOT: list(_watched(data.target))}
    lines = _HEAD.read_text("utf-8").replace("@PROGRAM", _program()).splitlines()
    rows = stages_of_chain(data)
    left_out = {out for row in TABLE if row not in rows for out in row.outs}
    for row in rows:
        deps = [path for dep in row.deps if dep not in left_out for path in roots.get(dep, [dep])]
        lines += [f"  {row.name}:", f"    desc: {row.description}", f"    cmd: exec autolabel stage {row.name}"]
        for key, values in (
            ("deps", deps),
            ("params", [f"{SETTINGS}:", *(f"    - {key}" for key in row.watched)]),
            ("outs", row.outs),
            ("metrics", [f"{row.metrics}: {{cache: false}}"]),
            ("plots", row.plots),
        ):
            marked = (value if value.startswith(" ") else f"- {value}" for value in values)
            lines += [f"    {key}:", *(f"      {value}" for value in marked)] if values else []
        lines.append("")
    return "\n".join(lines)


def _watched(source: SourceSpec) -> Iterator[str]:
    """What DVC watches of the target data set: its root, or, of plain folders, those that are read."""
    if not source.folders:
        yield TARGET_ROOT
        return
    keys = {getattr(source, key): key for key in ("new", "coarse", "labels", "images")}
    yield from (f"{TARGET_ROOT}/${{data.target.{keys[folder]}}}" for folder in source.folders)
    yield from (f"${{data.target.{key}}}" for key in ("classes", "table") if getattr(source, key))


def _program() -> str:
    """Digest of values that no params.yaml holds: the defaults of the code and the versions of the stages."""
    sources = {"target": {"root": "."}, "pretrain": {"root": "."}}
    defaults = Params.parse(Document(Path("defaults"), {"profile": "tiny", "data": sources}))
    return atomic.digest([defaults.model_dump(mode="json"), VERSIONS])[:8]


def stages_of(path: Path) -> dict[str, Any]:
    """The stages of a dvc.yaml by name.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        stages = YAML(typ="safe").load(path.read_text("utf-8"))["stages"]
        return {name: dict(stage) for name, stage in stages.items()}
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: no stages can be read: every dvc repro fails ({one_line(error)})",
            hint="take it from version control, or from a new workspace of `autolabel init`",
        ) from error


def differing_stages(path: Path, params: Params) -> list[str]:
    """Names of stages whose entry in dvc.yaml lacks what this program or these settings need; additions are valid."""
    found, needed = stages_of(path), _needed(params)
    return [name for name, stage in needed.items() if not _holds(found.get(name, {}), stage)]


def check_dvc_yaml(path: Path, params: Params) -> None:
    """Raise a ConfigError where a stage of dvc.yaml is not what this program and these settings need."""
    if differing := differing_stages(path, params):
        raise ConfigError(
            f"{path}: written for another program or for other settings (stage {', '.join(differing)})",
            hint="autolabel doctor --fix writes these stages anew",
        )


def renew_dvc_yaml(path: Path, params: Params) -> list[str]:
    """Rewrite the differing stages, leave the rest of dvc.yaml as it is, and return the names of these stages."""
    differing = differing_stages(path, params)
    if differing:
        document, needed = load_editable(path.read_text("utf-8")), _needed(params)
        for name in differing:
            stage = document["stages"].setdefault(name, {})
            stage.update({key: value for key, value in needed[name].items() if stage.get(key) != value})
        atomic.write_text(path, dump_editable(document))
    return differing


def _needed(params: Params) -> dict[str, Any]:
    text = render_dvc_yaml(params.data)
    return dict(YAML(typ="safe").load(text)["stages"])


def _holds(found: Mapping[str, Any], needed: Mapping[str, Any]) -> bool:
    names = {key: (set(_names(found, key)), set(_names(needed, key))) for key in _COMPARED}
    is_spare = (PRETRAIN_ROOT, "") in names["deps"][0] - names["deps"][1]  # DVC cannot resolve this variable
    return found.get("cmd") == needed["cmd"] and not is_spare and all(want <= have for have, want in names.values())


def _names(stage: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    """Yield the names that a stage lists under a key: (path, "") or, for settings of a file, (file, setting)."""
    for one in stage.get(key) or ():
        if isinstance(one, Mapping):
            yield from ((file, name) for file, names in one.items() for name in names or ("",))
        else:
            yield one, ""
