"""The report tells what answers about regions brought, and which labels come from alike regions."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa_core.data.index import Index
from hmsa_core.io.errors import IntegrityError
from hmsa_core.labels.review import UNTOUCHED, Mark, Patch, labels_id
from pipeline.report.build import render, write_night
from pipeline.report.facts import collect
from pipeline.report.results import diet
from pipeline.report.since import Since
from pipeline.review.questions import Questions, review_of
from pipeline.review.spot_check import SpotFile
from pipeline.review.view import StoreView
from pipeline.stages import pseudo_label
from pipeline.workspace.registry import Registry
from pipeline.workspace.workspace import Workspace
from tests.support.checkpoints import checkpoint
from tests.support.label_maps import stored
from tests.support.label_scenes import LINEAGE
from tests.support.photographs import prepared

ROAD, CAR, SKY = range(3)


def _label(ws: Workspace, teacher: str = "a" * 64) -> None:
    """Labels of a teacher that takes every car for sky; true maps lie in `truth`."""
    index = Index.load(ws.path("data/index/unlabelled.parquet"))
    rng, labels = np.random.default_rng(3), {}
    ws.path("truth").mkdir(exist_ok=True)
    for sample in index.samples:
        truth = rng.integers(0, 3, (4, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        cv2.imwrite(str(ws.path(f"truth/{sample.name}.png")), truth)
        labels[sample.name] = np.where(truth == CAR, np.uint8(SKY), truth)
    stored(ws.path("labels/raw"), labels, LINEAGE | {"teacher": teacher}, classes=index.classes)


@pytest.fixture
def ws(tmp_path: Path, no_tools: None) -> Workspace:
    """A workspace with labels of two pictures."""
    made = prepared(tmp_path)
    _label(made)
    return made


@pytest.fixture
def ask(ws: Workspace, said: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """`autolabel ask labels/raw --json`, answered by the true maps."""

    def run(*options: object) -> dict[str, Any]:
        answers = ("--answers", ws.path("truth"), "--ids", "train")
        found: dict[str, Any] = json.loads(said("ask", ws.path("labels/raw"), *answers, *options, "--json").out)
        return found

    return run


def _section(ws: Workspace, name: str) -> str:
    """HTML of a section of the report; "" without it."""
    page = render(collect(ws), [], title="t")
    return page.partition(f"<h2>{name}</h2>")[2].partition("</details>")[0]


def _cells(section: str) -> list[list[str]]:
    rows = (re.findall("<td[^>]*>(.*?)</td>", row) for row in section.split("<tr>"))
    return [[re.sub("<[^>]+>", "", cell) for cell in row] for row in rows if row]


def _expected(row: dict[str, Any]) -> list[str]:
    shares = ["{:.1f} {:.1f}…{:.1f}".format(*(100 * end for end in row[key])) for key in ("before", "after")]
    pixels = [f"{row[key]:,}" for key in ("labelled", "corrected", "ignored")]
    return [str(row["answers"]), f"{row['minutes']:.1f}", *pixels, *shares]


def test_the_report_has_the_figures_and_the_sentence_of_ask(ws: Workspace, ask: Callable[..., dict[str, Any]]) -> None:
    found = ask("--budget", 60)
    assert found["price"][-1]["corrected"] > 0
    assert found["next"] is not None
    section = _section(ws, "Answers")
    assert _cells(section) == [_expected(row) for row in found["price"]]
    assert f"<p>{html.escape(found['words'])}.</p>" in section
    assert len(re.findall("<th title=", section)) == 7, "each figure's name says what it is under the pointer"
    assert "<th>" not in section
    more = ask("--budget", 8, "--seed", 1)
    assert more["words"].startswith("too few answers for a forecast")
    section = _section(ws, "Answers")
    assert _cells(section)[: len(found["price"])] == [_expected(row) for row in found["price"]], "these answers stay"
    assert _cells(section)[-1] == _expected(more["price"][-1])
    assert section.index(html.escape(found["words"])) < section.index(html.escape(more["words"]))


def test_without_answers_about_the_labels_of_now_there_is_no_section(
    ws: Workspace, ask: Callable[..., dict[str, Any]]
) -> None:
    assert _section(ws, "Answers") == ""
    view = StoreView(ws.path("labels/raw"))
    SpotFile(Questions, view).start(Questions.draw(view, budget=30))
    assert _section(ws, "Answers") == "", "nobody answered them"
    ask("--budget", 30)
    assert _section(ws, "Answers") != ""
    shutil.rmtree(ws.path("labels/raw"))
    assert _section(ws, "Answers") == ""
    _label(ws, "b" * 64)
    assert _section(ws, "Answers") == "", "another teacher labels: these answers say nothing of its labels"


def test_a_damaged_file_of_questions_is_named_and_left_alone(ws: Workspace) -> None:
    path = ws.path("labels/raw.questions.json")
    path.write_text('{"format": "hmsa-region-questions", "version": 1}')
    with pytest.raises(IntegrityError, match=r"raw\.questions\.json: damaged: .* at 'id'") as told:
        collect(ws)
    assert told.value.hint == "restore it, or move it away and ask anew"
    assert path.read_text() == '{"format": "hmsa-region-questions", "version": 1}'


def test_labels_of_alike_regions_have_a_column_where_there_are_any(ws: Workspace) -> None:
    pseudo_label.run(ws)
    assert "alike regions %" not in diet(ws).head
    assert "from alike" not in _section(ws, "What the student learns from")
    view, alike = StoreView(ws.path("labels/raw")), np.full((32, 48), UNTOUCHED, np.uint8)
    alike[:10, :7] = CAR
    patch = Patch.of(alike, view.classes)
    mark = Mark("", view.names[0], "correct", labels=labels_id(view.lineage), pixels=patch, alike=True)
    review_of(view).replace_alike([mark])
    pseudo_label.run(ws)
    table = diet(ws)
    assert table.head[-1] == "alike regions %"
    assert [str(row[-1]) for row in table.rows] == ["0.00", "100.00", "0.00", "70"]
    section = _section(ws, "What the student learns from")
    assert len(re.findall("<th title=[^>]*>(?:from alike|alike regions %)</th>", section)) == 2
    assert [row[-2] for row in _cells(section)[-3:]] == ["0", "70", "0"]


def test_the_lineage_names_the_registered_model_that_labelled(ws: Workspace) -> None:
    version = Registry(ws.root).register(checkpoint(ws.path("models/student")))
    shutil.rmtree(ws.path("labels/raw"))
    _label(ws, version.record["weights_sha256"])
    (row,) = [cells for cells in _cells(_section(ws, "Lineage")) if cells[0] == "labels/raw"]
    assert row[2] == version.name


def test_a_failed_night_announces_figures_of_a_judged_night_only_where_there_are_some(ws: Workspace) -> None:
    def page() -> str:
        write_night(
            ws.path("night.html"), ws.root, Since({}, failed="no space", sentences=("It ended early.",)), collect(ws)
        )
        return ws.path("night.html").read_text()

    assert "last night that was judged" not in page()
    ws.path("evaluation").mkdir()
    ws.path("evaluation/metrics.json").write_text(json.dumps({"kept": {"precision": 0.97, "coverage": 0.8}}))
    assert "last night that was judged" in page()
