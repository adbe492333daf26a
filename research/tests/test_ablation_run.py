"""The loop over rows and seeds with jobs that take no time: what is made once, shared, gone on with, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.workspace.workspace import Workspace
from research.ablation import run
from research.ablation.catalogue import make_ablation
from research.ablation.freeze import read_freeze, write_freeze
from research.ablation.jobs import start_of
from research.ablation.plan import Training
from research.ablation.recipe import Scale
from research.ablation.run import Request, pending, run_ablation
from research.figures import CONFIRMING, EXPLORING, Figure, figures
from research.tests.ablations import FakeJobs, bare_workspace
from tests.support.chain import set_params


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return bare_workspace(tmp_path / "ws")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    return FakeJobs(tmp_path / "jobs").install(monkeypatch)


def ask(ws: Workspace, tmp_path: Path, name: str, *rows: str, seeds: tuple[int, ...] = (0,)) -> Request:
    table = make_ablation(name, ws.params)
    return Request(table, table.pick(rows or None), seeds, tmp_path / "tables")


def of(lines: list[Figure], row: str, metric: str, **wanted: object) -> list[float | None]:
    return [x.value for x in lines if x.row == row and x.metric == metric and wanted.items() <= vars(x).items()]


def test_rows_of_one_checkpoint_are_trained_once_and_evaluated_together(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    written = run_ablation(ws, ask(ws, tmp_path, "scales", seeds=(0, 1)))
    assert len(written) == 32
    assert jobs.trained == [(k, s) for s in (0, 1) for k in ("single", "hierarchical", "explicit")]
    assert [len(names) for names in jobs.evaluated] == [9, 4, 3] * 2


def test_a_row_that_is_in_the_table_is_not_run_again_unless_asked(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    request = ask(ws, tmp_path, "labels", "baseline", "attention")
    run_ablation(ws, request)
    lines = figures(request.path)
    jobs.trained.clear()
    assert run_ablation(ws, request) == []
    clone = bare_workspace(tmp_path / "clone")
    assert run_ablation(clone, ask(clone, tmp_path, "labels", "baseline", "attention", "both")) == [("both", 0)]
    assert jobs.trained == [("hierarchical", 0)]
    jobs.quality["attention"] = 0.9
    assert run_ablation(ws, replace(request, again=True)) == [("baseline", 0), ("attention", 0)]
    after = figures(request.path)
    assert len([x for x in after if x.row in ("baseline", "attention")]) == len(
        [x for x in lines if x.row in ("baseline", "attention")]
    ), "replaced, not doubled"
    changed = of(after, "attention - baseline", "difference", seed=None, name="")
    assert changed != of(lines, "attention - baseline", "difference", seed=None, name="")


def test_a_model_that_is_to_be_published_is_made_where_the_table_has_its_figures_but_no_model_is_there(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(of: Workspace, _: Path, name: str) -> None:
        atomic.write_json(of.path(f"{name}/model.json"), {})

    monkeypatch.setattr(run, "publish_checkpoint", publish)
    run_ablation(ws, ask(ws, tmp_path, "labels", "baseline", "attention"))
    clone = bare_workspace(tmp_path / "clone")  # its tables come with the repository
    request = replace(ask(clone, tmp_path, "labels", "baseline", "attention"), publish={"attention": "shown"})
    assert run_ablation(clone, request) == [("attention", 0)]
    assert clone.path("models/shown/model.json").exists()
    assert run_ablation(clone, request) == []


def test_a_kill_loses_only_the_group_that_was_running(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "scales")
    jobs.die_before_evaluation = 1
    with pytest.raises(KeyboardInterrupt):
        run_ablation(ws, request)
    assert [bool(cell.found) for cell in pending(request)].count(True) == 9
    jobs.die_before_evaluation = None
    assert len(run_ablation(ws, request)) == 7


def test_the_table_says_what_was_seen_spent_and_used(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "scales", "hierarchical-0.5-1")
    run_ablation(ws, request)
    lines = figures(request.path)
    crops = ws.params.teacher_train.epochs * 10
    known = {"images": 24, "images_seen": crops, "gmac_training": 2 * crops, "gmac_image": 1, "train_seconds": 8}
    known |= {"weight_of_0.5x_interior": 1.0, "weight_of_1x_band": 0.0, "calibration_error": 0.1}
    for metric, value in known.items():
        assert of(lines, "hierarchical-0.5-1", metric, seed=0, name="", setting="0.5,1") == [value]
    assert of(lines, "hierarchical-0.5-1", "iou", seed=0, name="pole") == [0.5]
    assert {x.table for x in lines} == {"scales"}
    assert all(x.commit and "cores" in x.machine and str(tmp_path) not in str(x) for x in lines)


def test_the_teacher_as_it_is_stands_once_whatever_the_seeds(jobs: FakeJobs, tmp_path: Path) -> None:
    ws = bare_workspace(tmp_path / "camvid", "camvid")
    request = ask(ws, tmp_path, "camvid-table", "teacher", "control", seeds=(3, 4))
    assert run_ablation(ws, request) == [("teacher", 0), ("control", 3), ("control", 4)]
    assert run_ablation(ws, request) == []
    assert of(figures(request.path), "control - teacher", "difference", seed=4) == [0.0]


def test_a_students_row_starts_where_the_workspaces_student_starts(jobs: FakeJobs, tmp_path: Path) -> None:
    student = Training("student_train", "teacher")
    assert start_of(bare_workspace(tmp_path / "copy"), student) == jobs.folder / "teacher"
    other = bare_workspace(tmp_path / "other")
    set_params(other.root, {"student_train.init": "pretrained"})
    assert start_of(Workspace(other.root), student) is None


def test_intervals_of_more_seeds_than_a_workspace_has_counts_of_stay(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    request = ask(ws, tmp_path, "labels", "baseline", "both", seeds=(0, 1))
    run_ablation(ws, request)
    clone = bare_workspace(tmp_path / "clone")
    run_ablation(clone, ask(clone, tmp_path, "labels", "baseline", "both", seeds=(2,)))

    def seeds() -> set[int | None]:
        return {x.seed for x in figures(request.path) if x.setting == EXPLORING and x.row == "both - baseline"}

    assert seeds() == {None, 0, 1}, "no counts of seeds 0 and 1 in the clone"
    run_ablation(ws, replace(request, seeds=(2,), again=True))
    assert seeds() == {None, 0, 1, 2}


def test_a_shorter_training_is_another_setting_and_has_no_intervals(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    request = replace(ask(ws, tmp_path, "labels", "attention"), scale=Scale(0.5))
    run_ablation(ws, request)
    assert {x.setting for x in figures(request.path)} == {"0.5,1,2, 0.5 of the epochs"}
    assert run_ablation(ws, replace(request, scale=Scale())) == [("attention", 0)]


def freeze(ws: Workspace, request: Request, seeds: tuple[int, ...], note: str = "as shipped") -> None:
    write_freeze(ws.params, request.ablation, request.scale, request.tables, seeds, 4, note)


def test_confirming_seeds_are_closed_until_the_recipe_is_frozen(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "labels", "both", "attention", seeds=(100, 101))
    with pytest.raises(ConfigError, match="seed 100 is for confirming: freeze the recipe first"):
        run_ablation(ws, request)
    assert jobs.trained == []
    freeze(ws, request, (100, 101))
    assert read_freeze(request.tables, "labels")["variants_tried"] == 4
    assert len(run_ablation(ws, request)) == 4
    kinds = {x.setting for x in figures(request.path) if x.row == "both - attention"}
    assert kinds == {CONFIRMING}
    with pytest.raises(ConfigError, match="seed 102 is for confirming"):
        run_ablation(ws, replace(request, seeds=(102,)))


def test_a_change_of_the_recipe_after_the_freeze_closes_the_seeds_again(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    request = ask(ws, tmp_path, "labels", "both", seeds=(100,))
    freeze(ws, request, (100,))
    with pytest.raises(ConfigError, match="the recipe was changed since it was frozen"):
        run_ablation(ws, replace(request, scale=Scale(0.5)))


def test_what_was_opened_cannot_be_frozen_anew_and_a_freeze_says_how_it_was_chosen(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    request = ask(ws, tmp_path, "labels", "both", seeds=(100,))
    with pytest.raises(ConfigError, match="how the recipe was chosen"):
        freeze(ws, request, (100,), note="")
    with pytest.raises(ConfigError, match="confirming seeds are 100 or more, got 3"):
        freeze(ws, request, (3, 100))
    freeze(ws, request, (100,))
    run_ablation(ws, request)
    with pytest.raises(ConfigError, match="seed 100 was run before"):
        freeze(ws, request, (100, 101))
