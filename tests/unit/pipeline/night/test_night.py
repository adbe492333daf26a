"""How a night begins, how it ends without its server, and what is left of one that fails before its first stage."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from hmsa_core import __version__
from hmsa_core.io import atomic, records
from hmsa_core.io.errors import ConfigError, HmsaError, IntegrityError, LockedError, NoSpaceError
from pipeline.night import flow as nightly
from pipeline.night import history
from pipeline.night.figures import cost_of
from pipeline.night.morning import PAGE
from pipeline.night.reaper import nightly_lock
from pipeline.night.stage_process import ServerGoneError
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace
from research.tests.ablations import bare_workspace
from tests.support.chain import set_params
from tests.support.label_maps import write_store

ENGINE = str(find_spec("prefect.engine").origin)  # type: ignore[union-attr]
HISTORY = "work/nightly/history.jsonl"
YESTERDAY = {"night": {"data": "d", "roles": {"learn": 4}}, "kind": "kept", "counts": {"arrived": 3}, "coverage": {}}


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    made = bare_workspace(tmp_path)
    atomic.write_json(tmp_path / "models/current.json", {"teacher": "stage:teacher-train"})
    atomic.write_text(tmp_path / PAGE, "yesterday's")
    records.append(tmp_path / HISTORY, YESTERDAY)
    # No server: what a run has from Prefect is not asked for.
    monkeypatch.setattr(nightly, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(nightly, "get_run_logger", lambda: logging.getLogger("night"))
    monkeypatch.setattr(nightly, "_run_id", lambda: None)
    monkeypatch.setattr(nightly, "reap", lambda *_, **__: [])
    monkeypatch.setattr(nightly, "publish_task", nightly.morning.publish)
    monkeypatch.setattr(nightly, "dvc_unchanged", lambda _root: pytest.fail("the night has begun"))
    return made


def _fails(ws: Workspace, error: type[HmsaError], **given: Any) -> tuple[str, list[dict[str, Any]]]:
    """The page, and the nights that were remembered behind yesterday's."""
    with pytest.raises(error):
        nightly.auto_label.fn(str(ws.root), **given)
    lines = ws.path(HISTORY).read_text().splitlines()
    assert json.loads(lines[0]) == YESTERDAY
    return ws.path(PAGE).read_text(), [json.loads(line) for line in lines[1:]]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"threshold": 1.5}, "parameters of this run: pseudo_label.threshold"), ({"stages": ["auto-infr"]}, "auto-infr")],
)
def test_bad_parameters_of_a_run_are_on_the_page(ws: Workspace, given: dict[str, Any], message: str) -> None:
    page, nights = _fails(ws, ConfigError, **given)
    assert "The night ended early" in page
    assert message in page
    assert "What differs from last night" in page, "the whole page"
    assert "models rollback" not in page, "nothing was promoted"
    ((kind, why),) = [(night["kind"], night["why"]) for night in nights]
    assert (kind, message in why) == ("failed", True)


def test_a_night_whose_prepare_failed_has_a_page_and_keeps_the_images_of_the_night_before(ws: Workspace) -> None:
    set_params(ws.root, {"pseudo_label.threshold": 0.5})
    for name in ("raw", "final"):  # DVC has removed data/index, and nothing else
        write_store(ws.path(f"labels/{name}"), 2)
    page, (night,) = _fails(ws, ConfigError, stages=["auto-infr"])
    assert "The night ended early" in page
    assert "no images were indexed" in page
    assert "The gate, class by class" not in page, "the report needs an index"
    assert (night["counts"]["arrived"], night["night"]["data"], night["night"]["roles"]) == (3, "d", {"learn": 4})


def test_labels_are_priced_by_the_job_that_made_them_and_not_by_a_stage_that_found_them_made(ws: Workspace) -> None:
    atomic.write_json(ws.path("work/auto-infer/keys.json"), {"auto-infer": ["k"]})
    atomic.write_json(ws.path("work/auto-infer/k/summary.json"), {"images": 50, "seconds": 180.0})
    atomic.write_json(ws.path("work/times/auto-infer.json"), {"seconds": 2.0})
    ranks = ws.params.auto_infer.runtime.ranks
    assert cost_of(ws, {}, {})["per_1000_images"] == ranks * 1.0


@pytest.mark.parametrize(("holder", "has_page"), [("autolabel models aa", True), (ENGINE, False)])
def test_a_night_that_cannot_begin_leaves_no_page_of_yesterday_unless_another_night_writes_one(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, holder: str, has_page: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", holder.split())
        lock = nightly_lock(ws.root).acquire()
    page, nights = _fails(ws, LockedError)
    lock.release()
    assert [night["kind"] for night in nights] == ["failed"] * has_page
    assert (page != "yesterday's") is has_page
    if has_page:
        assert re.search(rf"the workspace {ws.root} is in use by process \d+ \(autolabel models aa\)", page)
        assert re.search(rf"night of {datetime.now(UTC):%Y-%m-%d} \d\d:\d\d UTC", page)


def test_a_killed_night_is_in_the_history_and_on_the_next_page_with_the_images_that_it_found(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*images: str) -> dict[str, Any]:
        rows = [[name, f"images/{name}.png"] for name in images]
        lists = {"arrived": rows, "copies": [], "near": [], "gone": []}
        return {key: len(each) for key, each in lists.items()} | {"examples": lists, "first": False, "sentence": ""}

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nightly, "dvc_unchanged", lambda _root: True)
    monkeypatch.setattr(nightly, "check_machine_task", lambda *_: None)
    monkeypatch.setattr(nightly.stage_task, "with_options", lambda **_: killed)
    for images in (("a", "b"), ("b", "c")):  # the index does not know b yet, since no `prepare` ran
        monkeypatch.setattr(nightly, "discover_task", lambda _ws, images=images: found(*images))
        with pytest.raises(KeyboardInterrupt):
            nightly.auto_label.fn(str(ws.root), stages=["calibrate"])
    assert ws.path(PAGE).read_text() == "yesterday's"
    monkeypatch.setattr(nightly, "discover_task", lambda _ws: found())
    monkeypatch.setattr(nightly.stage_task, "with_options", lambda **_: lambda *_, **__: 1.0)
    write_store(ws.path("labels/raw"), 2)
    nightly.auto_label.fn(str(ws.root), stages=["calibrate"])
    lines = [json.loads(line) for line in ws.path(HISTORY).read_text().splitlines()]
    assert [(line["kind"], line.get("why")) for line in lines[1:]] == [
        *[("failed", "it was stopped or killed, or its disk was full, in stage calibrate")] * 2,
        ("not judged", None),
    ]
    page = ws.path(PAGE).read_text()
    assert "ended without a page: it was stopped or killed, or its disk was full, in stage calibrate" in page
    for name in ("a", "b", "c"):
        assert page.count(f"images/{name}.png") == 1


@pytest.mark.parametrize("given", [{}, {"threshold": 0.85}])
@pytest.mark.parametrize("broken", [b"use_corse: 1\n", b"a:\n\tb: 1\n", b"a: b: c\n", "# größer\n".encode("latin-1")])
def test_a_params_file_that_cannot_be_read_has_a_page_without_what_needs_it(
    ws: Workspace, broken: bytes, given: dict[str, Any]
) -> None:
    params = ws.path("params.yaml")
    params.write_bytes(params.read_bytes() + broken)
    page, (night,) = _fails(ws, ConfigError, **given)
    assert "params.yaml:" in page
    assert "autolabel doctor" in page
    assert "how far to trust" not in page, "nothing is said about what was not read"
    assert night["kind"] == "failed"
    assert night["counts"] == YESTERDAY["counts"], "the next night is compared with the last that is known"
    assert night["night"] | YESTERDAY["night"] == night["night"]  # type: ignore[operator]


def test_a_server_that_fails_over_other_runs_does_not_end_the_night(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> list[str]:
        raise httpx.ReadError("the server is busy")

    monkeypatch.setattr(nightly, "reap", fails)
    _, (night,) = _fails(ws, ConfigError, stages=["auto-infr"])
    assert night["kind"] == "failed", "the night went on to its own error"
    assert "not settled: the server is busy" in caplog.text


@pytest.mark.parametrize("name", [HISTORY, "models/registry/history.jsonl", "models/registry/looks.jsonl"])
def test_a_damaged_history_ends_the_night_before_its_first_stage_and_is_on_the_page(ws: Workspace, name: str) -> None:
    path = ws.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write('{"torn": ')
    with pytest.raises(IntegrityError, match=rf"{name}: line \d is not"):
        nightly.auto_label.fn(str(ws.root))
    page = ws.path(PAGE).read_text()
    assert f"{name}: line " in page
    assert "How to fix it:</b> correct or remove that line" in page
    assert path.read_text().endswith('{"torn": '), "nothing is written behind it"


@pytest.mark.parametrize(
    ("chosen", "unchanged", "checked"),
    [
        (list(STAGES), False, list(STAGES)),
        (["prepare", "auto-infer"], False, ["prepare", "auto-infer"]),
        (list(STAGES), True, []),
    ],
)
def test_the_disk_is_asked_for_the_stages_that_will_run(
    chosen: list[str], unchanged: bool, checked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[Any] = []

    def no_space(_ws: Workspace, stages: list[str]) -> None:
        messages.append(stages)
        raise NoSpaceError("about 10.0 GiB are needed, 1.0 GiB are free")

    ws = bare_workspace(tmp_path)
    monkeypatch.setattr(nightly, "dvc_unchanged", lambda _root: unchanged)
    monkeypatch.setattr(nightly, "check_machine_task", no_space)
    monkeypatch.setattr(nightly, "_publish_failure", lambda *_: None)
    with pytest.raises(NoSpaceError):
        nightly._night(ws, chosen, {}, {"promote": False})
    assert messages == [checked]


@pytest.mark.parametrize(
    ("run", "own", "ends"), [("a", "a", True), ("a", "b", False), ("a", None, False), (None, None, False)]
)
def test_without_its_server_a_run_ends_its_own_process_and_no_other(
    run: str | None, own: str | None, ends: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(nightly.os, "_exit", statuses.append)
    monkeypatch.setattr(nightly, "_run_id", lambda: run)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    if own:
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", own)
    nightly._leave(ServerGoneError("auto-infer: the orchestration server is gone"))
    assert statuses == [1] * ends
    assert ("server is gone" in capsys.readouterr().err) == ends, "worker.log says why"


def test_a_night_on_a_machine_without_git_is_described_without_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = bare_workspace(tmp_path)
    atomic.write_json(tmp_path / "models/current.json", {"teacher": "stage:teacher-train"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert history.describe(ws, {}, "")["code"] == __version__
