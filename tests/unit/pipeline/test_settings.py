"""Profiles, the annotated params.yaml that follows from the typed fields, and `autolabel config`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from hmsa_core.config import Section
from hmsa_core.data.source import OnlyFor
from pipeline.workspace import params as params_module
from pipeline.workspace.params import PROFILES, Params, profile_file
from pipeline.workspace.settings import annotated, differences, origins, other_settings, profile_text
from pipeline.workspace.table import Stage
from pipeline.workspace.yaml_text import Document, read_yaml
from tests.conftest import REPO


def _parsed(text: str, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_text(text, "utf-8")
    return Params.load(path)


def _changed(params: Params, **values: dict[str, Any]) -> Params:
    return Params.model_validate({**params.model_dump(), **values}, strict=False)


@pytest.fixture
def ws(tmp_path: Path) -> Path:
    """A folder with the params.yaml of profile tiny, one value of which was changed."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(profile_text("tiny").replace("  epochs: 8\n", "  epochs: 9\n"))
    return tmp_path


@pytest.mark.parametrize("profile", PROFILES)
def test_the_written_params_of_a_profile_have_its_values(profile: str, tmp_path: Path) -> None:
    params = _parsed(profile_text(profile), tmp_path)
    assert params.profile == profile
    assert params == Params.of_profile(profile) == _parsed(annotated(params), tmp_path)
    assert profile_text(profile) == profile_file(profile).read_text(), "comments and layout stay as they are"
    assert len(profile_text(profile).splitlines()) <= 70
    assert re.search(r"^  threshold: ", profile_text(profile), re.MULTILINE), "dvc exp run -S sets only what is there"


def _fields(section: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, info in section.model_fields.items():
        inner = params_module._models_in(info.annotation)
        if not inner:  # a section is described by its class, those of stages by their row
            yield f"{section.__name__}.{name}", info
        for one in inner:
            yield from _fields(one)


@pytest.mark.parametrize("profile", PROFILES)
def test_show_holds_every_setting_with_its_explanation(profile: str, tmp_path: Path) -> None:
    assert [name for name, info in _fields(Params) if not info.description] == []
    text = annotated(Params.of_profile(profile))
    (tmp_path / "written.yaml").write_text(text, "utf-8")
    lines = read_yaml(tmp_path / "written.yaml").lines
    written = {key for key in lines if not any(isinstance(k, int) for k in key)}

    def wanted(section: BaseModel, at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, info in type(section).model_fields.items():
            # A data set has settings of other layouts (a plain folder's pattern, a variant): left out there.
            if not any(isinstance(mark, OnlyFor) for mark in info.metadata):
                yield (*at, name)
                value = getattr(section, name)
                yield from wanted(value, (*at, name)) if isinstance(value, Section) else ()

    assert set(wanted(Params.of_profile(profile), ())) <= written
    for line in text.split("\ndata:")[1].splitlines():
        is_setting = re.match(r"^ +[a-z_]+: \S", line)
        assert not is_setting or re.search(r"\S  +# \S", line), line


@pytest.mark.parametrize(
    "root",
    ["data/x", "with space", "a, b", "# no comment", "null", "1e5", "'", '"', "ü/ä", "a: b", "[x]", "\U0001f600\u2028"],
)
def test_any_text_is_read_back_as_it_was_written(root: str, tmp_path: Path) -> None:
    params = _parsed(profile_text("cityscapes", {"target": root}), tmp_path)
    assert params.data.target.root == root
    assert _parsed(annotated(params), tmp_path).data.target.root == root


def test_a_deterministic_workspace_leaves_nothing_to_the_machine(tmp_path: Path) -> None:
    assert profile_text("camvid").count(": auto") == 3
    params = _parsed(profile_text("camvid", deterministic=True), tmp_path)
    for section in (params.teacher_train, params.student_train, params.auto_infer, params.evaluate):
        assert (section.runtime.threads, section.runtime.precision) == (1, "fp32")
    assert params.teacher_train.runtime.channels_last is True


def test_a_source_shows_the_settings_of_its_layout_and_others_that_were_changed() -> None:
    sources = {"target": {"kind": "folder", "root": "x"}, "pretrain": {"kind": "mapillary", "max_bad_images": 3}}
    text = annotated(_changed(Params.of_profile("camvid"), data=sources))
    assert text.count("    pattern: ") == 1
    assert re.search(r"max_bad_images: 10.*max_bad_images: 3", text, re.DOTALL)
    assert "test_is_labelled" not in text
    assert "    name: " not in text


def test_show_prints_the_settings_in_effect_with_where_they_come_from(ws: Path, tmp_path: Path, said) -> None:
    shown = said("config", "show", "--workspace", ws).out
    assert re.search(r"\n  epochs: 9 +# \(here\) fixed length", shown)
    assert re.search(r"\n  epochs: 2 +# \(profile\) fixed length", shown)
    assert re.search(r"\n    momentum: 0.9 +# \(default\) SGD", shown)
    assert _parsed(shown, tmp_path).teacher_train.epochs == 9
    part = said("config", "show", "teacher_train", "--workspace", ws).out
    assert part.startswith("# teacher-train: ")
    assert part in shown
    assert "calibrate:" not in part
    wrong = said("config", "show", "teacher_trian", "--workspace", ws, status=2).err
    assert "no section 'teacher_trian'; did you mean teacher_train?" in wrong


def test_diff_names_what_differs_from_the_profile_from_another_one_and_from_a_file(ws: Path, said) -> None:
    assert said("config", "diff", "--workspace", ws).out == "teacher_train.epochs: 8 -> 9\n"
    printed = said("config", "diff", "demo", "--workspace", ws).out.splitlines()
    assert f"teacher_train.epochs: {Params.of_profile('demo').teacher_train.epochs} -> 9" in printed
    assert "profile: demo -> tiny" in printed
    assert said("config", "diff", REPO, "--workspace", ws).out.splitlines() == printed
    wrote = said("config", "diff", "--profile", "tiny")
    assert (wrote.out, wrote.err) == ("", "no setting differs from profile tiny\n")


def test_diff_with_the_defaults_is_the_overlay_of_the_profile() -> None:
    params = Params.of_profile("demo")
    message = list(differences(params, other_settings("defaults", params)))
    assert "teacher_train.optimiser.lr: 0.02 -> 0.004" in message
    assert not [line for line in message if "momentum" in line]
    assert set(origins(params).values()) == {"(default)", "(profile)"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["diff", "dmeo", "--workspace", "."], "dmeo: no such settings; did you mean demo?"),
        (["diff", "--profile", "x"], "unknown profile 'x'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(ws: Path, monkeypatch, said, arguments: list[str], words: str) -> None:
    monkeypatch.chdir(ws)
    error = said("config", *arguments, status=2).err
    assert words in error
    assert error.count("\n") == 1


def test_a_stage_that_brings_its_settings_in_its_row_gets_a_section() -> None:
    row = Stage("count-cars", "count cars", (), (), (), settings={"least": (3, "pixels"), "share": (0.5, "of a class")})
    section = params_module._section_from(row)
    assert section.model_validate({"least": 4}).model_dump() == {"least": 4, "share": 0.5}
    document = Document(Path("params.yaml"), {"leats": 4})
    with pytest.raises(ValueError, match="leats") as wrong:
        section.model_validate(document.values)
    assert "unknown key; did you mean least?" in params_module.explain(wrong.value, document, section)
