"""The disk that doctor and night ask for is what the stages ask for, before any of their inputs is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import NoSpaceError
from pipeline.doctor import checks as doctor
from pipeline.stages import disk, module_of, prepare
from pipeline.stages.disk import RESERVE, disk_need
from pipeline.stages.runner import check_space
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace
from research.tests.ablations import bare_workspace
from tests.support.photographs import edited, photograph, photographs, work_over

BY_SIZE = ("calibrate", "auto-infer", "pseudo-label", "evaluate")  # what these take depends on the images


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace in which nothing has run, over eight pictures of eight cities; g and h have no labels."""
    root = photographs(tmp_path / "photographs", "abcdef", "gh", "extra", 0, (400, 300))
    bare_workspace(tmp_path / "ws", "tiny")
    return work_over(tmp_path / "ws", root, "extra", calibrate="cd", report="e")


def _by_stage(ws: Workspace) -> dict[str, int]:
    """What the stages ask for when they are run."""
    return {stage: int(module_of(stage).disk_estimate(ws)) for stage in STAGES}


def test_before_the_first_run_every_stage_is_counted_with_what_it_will_ask_for(ws: Workspace) -> None:
    need = disk_need(ws)
    assert need.unknown == ""
    assert not ws.path("data/index").exists(), "looking changes nothing"
    prepare.run(ws)
    own = _by_stage(ws)
    assert own["pseudo-label"] == 0, "it goes by labels that are not there yet"
    assert need.parts == own | {"pseudo-label": own["auto-infer"]}
    assert own["auto-infer"] >= 2 * 300 * 400 * 2
    assert min(own[stage] for stage in ("calibrate", "auto-infer", "evaluate")) >= 300 * 400
    assert need.total == sum(need.parts.values())


def test_images_of_tonight_count_before_prepare_has_seen_them(ws: Workspace) -> None:
    prepare.run(ws)
    assert disk_need(ws).parts["auto-infer"] == _by_stage(ws)["auto-infer"]
    photograph(ws.roots["target"], "i", "extra", np.random.default_rng(0), (800, 600))
    ws = Workspace(ws.root)
    tonight = disk_need(ws)
    assert tonight.parts["auto-infer"] > _by_stage(ws)["auto-infer"]
    prepare.run(ws)
    assert tonight.parts["auto-infer"] == _by_stage(ws)["auto-infer"]
    assert tonight.parts["pseudo-label"] == tonight.parts["auto-infer"]


def test_a_stage_that_the_night_allowed_has_its_room_however_much_the_others_took(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, need = shutil.disk_usage(ws.root), disk_need(ws)
    free = need.total + RESERVE
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free))
    assert disk_need(ws).fits
    disk.check_machine(ws)
    prepare.run(ws)
    raw = ws.path("labels/raw/shard-0.parquet")
    raw.parent.mkdir(parents=True)
    raw.write_bytes(bytes(need.parts["auto-infer"] // 3))  # one of the three copies that are counted
    for stage, size in _by_stage(ws).items():
        check_space(ws, stage, size)
        free -= size
    free = disk_need(ws).least + RESERVE - 1
    with pytest.raises(NoSpaceError, match="GiB are needed"):
        disk.check_machine(ws)
    (found,) = [f for f in doctor.examine(ws.root, deep=False) if f.name == "disk"]
    assert found.state == "broken"
    disk.check_machine(ws, [])  # a night that finds nothing to do
    disk.check_machine(ws, [s for s in STAGES if s != "student-train"])


def test_after_a_first_run_the_largest_stage_must_have_room_and_the_sum_is_reported(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in STAGES:  # most is there already, and how much is new cannot be foreseen
        atomic.write_json(ws.path(f"metrics/{stage}.json"), {})
    need, usage = disk_need(ws), shutil.disk_usage(ws.root)
    assert need.least == max(need.parts.values()) < need.total
    free = need.least + RESERVE
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free))
    assert "it may have to stop on the way" in disk.check_machine(ws)[0]
    (found,) = [f for f in doctor.examine(ws.root, deep=False) if f.name == "disk"]
    assert found.state == "warning"
    free -= 1
    with pytest.raises(NoSpaceError, match="GiB are needed"):
        disk.check_machine(ws)


def test_the_disk_of_dvcs_cache_is_asked_too(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need, usage, cache = disk_need(ws), shutil.disk_usage(ws.root), tmp_path / "cache"
    assert need.place == ws.root, "the cache is in the workspace"
    cache.mkdir()
    ws.path(".dvc").mkdir(exist_ok=True)
    ws.path(".dvc/config").write_text("[cache]\n    dir = ../../cache/dvc\n")
    free = {cache: need.least, ws.root: 1 << 50}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[path.resolve()]))
    with pytest.raises(NoSpaceError, match=r"/cache: at least .* GiB are needed"):
        disk.check_machine(ws)
    with pytest.raises(NoSpaceError, match=r"evaluate needs about .* in .*/cache, "):
        check_space(ws, "evaluate", need.least)


@pytest.mark.parametrize("trunk", ["hrnet_w18", "hrnet_w48"])
def test_a_larger_trunk_asks_for_more_before_the_first_run(ws: Workspace, trunk: str) -> None:
    small = disk_need(ws)
    edited(ws, {"train.model.trunk": trunk})
    large = disk_need(Workspace(ws.root))
    weights = 4 * {"hrnet_w18": 13, "hrnet_w48": 72}[trunk] * 1_000_000
    assert large.total - small.total > 2 * 3 * weights, "teacher and student: progress, output, DVC's cache"
    assert {s: large.parts[s] for s in BY_SIZE} == {s: small.parts[s] for s in BY_SIZE}


def test_images_whose_size_was_not_read_are_taken_to_be_like_the_others(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = disk_need(ws)
    monkeypatch.setattr(disk, "_HEADERS", 3)
    assert disk_need(ws).parts == exact.parts, "they are all of one size here"
    for number in range(20):  # `prepare` will leave them out; to ask for too much is the smaller mistake
        (ws.roots["target"] / f"images/extra/z_{number:04d}.png").write_bytes(b"no picture")
    assert disk_need(ws).parts["auto-infer"] >= exact.parts["auto-infer"]


def test_what_cannot_be_known_is_said_and_the_rest_is_counted_by_the_last_index_where_there_is_one(
    ws: Workspace,
) -> None:
    whole, root = disk_need(ws), ws.roots["target"]
    root.rename(root.with_name("away"))
    need = disk_need(ws)
    assert need.unknown.startswith("without calibrate, auto-infer, evaluate, pseudo-label: ")
    assert "data set folder not found" in need.unknown
    assert need.parts["student-train"] == whole.parts["student-train"] > 0
    (found,) = [f for f in doctor.examine(ws.root, deep=False) if f.name == "disk"]
    assert (found.state, need.unknown in found.text) == ("warning", True)
    assert need.unknown in disk.check_machine(ws)[0]
    root.with_name("away").rename(root)
    prepare.run(ws)
    whole = disk_need(ws)
    shutil.rmtree(root)
    need = disk_need(ws)
    assert need.unknown.startswith("without images that are new: ")
    assert need.parts == whole.parts
