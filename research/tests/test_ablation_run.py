"""The loop over cells with jobs that take no time: what is made once, shared, copied, gone on with, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.workspace import Workspace
from research.ablation import code
from research.ablation.accept import accept
from research.ablation.catalogue import make_ablation
from research.ablation.cells import Cell
from research.ablation.estimate import measured_rates
from research.ablation.freeze import read_freeze, write_freeze
from research.ablation.material import Scale
from research.ablation.run import Request, pending, run_ablation
from research.tests.ablations import FakeJobs, bare_workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return bare_workspace(tmp_path / "ws")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    return FakeJobs(tmp_path / "jobs").install(monkeypatch)


def ask(ws: Workspace, tmp_path: Path, name: str, *rows: str, seeds: tuple[int, ...] = (0,)) -> Request:
    table = make_ablation(name, ws.params)
    return Request(table, table.pick(rows or None), seeds, tmp_path / "results", Scale())


def states(ws: Workspace, request: Request) -> list[str]:
    return [cell.state.name for cell in pending(ws, request)]


def test_rows_of_one_checkpoint_are_trained_once_and_evaluated_together(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    written = run_ablation(ws, ask(ws, tmp_path, "scales", seeds=(0, 1)))
    assert len(written) == 32
    assert jobs.trained == [(k, s) for s in (0, 1) for k in ("single", "hierarchical", "explicit")]
    assert [len(names) for names in jobs.evaluated] == [9, 4, 3] * 2


def test_a_finished_cell_is_never_made_again_and_a_clone_goes_on(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "labels", "baseline", "attention")
    run_ablation(ws, request)
    jobs.trained.clear()
    assert run_ablation(ws, request) == []
    clone = bare_workspace(tmp_path / "clone")
    more = ask(clone, tmp_path, "labels", "baseline", "attention", "both")
    assert [c.row for c in run_ablation(clone, more)] == ["both"]
    assert jobs.trained == [("hierarchical", 0)]


def test_a_kill_loses_only_the_group_that_was_running(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "scales")
    jobs.die_before_evaluation = 1
    with pytest.raises(KeyboardInterrupt):
        run_ablation(ws, request)
    assert states(ws, request).count("finished") == 9
    jobs.die_before_evaluation = None
    assert len(run_ablation(ws, request)) == 7


def test_a_record_says_what_was_seen_spent_used_and_how_to_make_it_again(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    run_ablation(ws, ask(ws, tmp_path, "scales", "hierarchical-0.5-1"))
    record = json.loads((tmp_path / "results" / "scales" / "hierarchical-0.5-1-seed0.json").read_text())
    crops = ws.params.teacher_train.epochs * 10
    assert record["images_seen"] == crops
    assert record["macs"] == {
        "train_per_crop": 129,
        "train_total": 129 * crops,
        "image": [64, 128],
        "inference_per_image": 1000,
    }
    assert record["command"] == "autolabel ablate scales --rows hierarchical-0.5-1 --seeds 0"
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["torch"]
    assert set(record["details"]) >= {"boundary", "weights", "mean_weights", "ece"}
    assert record["details"]["mean_weights"]["0.5"] == {"interior": 1.0, "band": 1.0}
    assert record["details"]["mean_weights"]["1"] == {"interior": 0.0, "band": 0.0}
    text = json.dumps(record)
    assert str(tmp_path) not in text, "no path of this machine"


def test_the_same_cell_of_another_table_is_copied(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    run_ablation(ws, ask(ws, tmp_path, "labels", "attention"))
    jobs.trained.clear()
    (cell,) = run_ablation(ws, ask(ws, tmp_path, "losses", "aux-cross-entropy"))
    assert jobs.trained == []
    assert cell.record["copied_from"] == "labels/attention-seed0.json"
    assert (cell.row, cell.record["title"]) == ("aux-cross-entropy", "auxiliary loss: cross_entropy")
    assert cell.counts().names


def test_the_teacher_as_it_is_stands_once_whatever_the_seeds(jobs: FakeJobs, tmp_path: Path) -> None:
    ws = bare_workspace(tmp_path / "camvid", "camvid")
    request = ask(ws, tmp_path, "camvid-table", "teacher", "control", seeds=(3, 4))
    written = run_ablation(ws, request)
    assert [(c.row, c.seed) for c in written] == [("teacher", 0), ("control", 3), ("control", 4)]
    assert written[0].record["training"] is None
    assert states(ws, request) == ["finished"] * 3


def test_labels_are_made_for_the_rows_that_learn_from_them(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    run_ablation(ws, ask(ws, tmp_path, "labels"))
    assert [(x.threshold, x.coarse) for x in jobs.labelled] == [
        ("policy", False),
        ("policy", False),
        ("none", True),
        ("policy", True),
    ]
    record = json.loads((tmp_path / "results" / "labels" / "coarse-seed0.json").read_text())
    assert record["labels"]["classes"]["pole"]["share"] == 0.2


def test_other_settings_or_code_make_the_cell_again_and_the_list_says_what_differs(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(ws, tmp_path, "labels", "attention")
    run_ablation(ws, request)
    shorter = replace(request, scale=Scale(0.5))
    assert states(ws, shorter) == ["settings"]
    assert "training.epochs" in pending(ws, shorter)[0].state.differs
    _edit_code(monkeypatch)
    assert states(ws, request) == ["code"]
    assert pending(ws, request)[0].state.differs == ("hmsa_core/losses/rmi.py",)
    assert len(run_ablation(ws, request)) == 1


def _edit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    real = code.source_digests

    def edited(groups, *args):
        return real(groups, *args) | {"hmsa_core/losses/rmi.py": "0" * 12}

    monkeypatch.setattr("research.ablation.material.source_digests", edited)


def test_a_change_of_code_can_be_accepted_with_a_reason_that_stays(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(ws, tmp_path, "labels", "attention")
    run_ablation(ws, request)
    made_by = Cell.load(request.folder / "attention-seed0.json").record["code"]["hmsa_core/losses/rmi.py"]
    _edit_code(monkeypatch)
    with pytest.raises(ConfigError, match="needs the reason"):
        accept(ws, request, "  ")
    assert accept(ws, request, "same bytes before and after") == 1
    assert states(ws, request) == ["finished"]
    cell = Cell.load(request.folder / "attention-seed0.json")
    assert cell.record["accepted"][0]["reason"] == "same bytes before and after"
    assert cell.record["accepted"][0]["differs"] == ["hmsa_core/losses/rmi.py"]
    assert cell.record["accepted"][0]["from_code"] == {"hmsa_core/losses/rmi.py": made_by}
    assert cell.counts().names


def test_a_changed_value_cannot_be_accepted(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "labels", "attention")
    run_ablation(ws, request)
    with pytest.raises(ConfigError, match=r"attention seed 0: training\.epochs has another value"):
        accept(ws, replace(request, scale=Scale(0.5)), "it is nearly the same")


def test_rates_come_from_cells_of_this_kind_of_machine(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert measured_rates(ws, results).train is None
    run_ablation(ws, ask(ws, tmp_path, "labels", "baseline"))
    rates = measured_rates(ws, results)
    assert rates.train == pytest.approx(100 * ws.params.teacher_train.epochs * 10 / 8.0)
    assert rates.evaluate == pytest.approx(1000 * 24 / 2.0)
    assert "1 finished cells" in rates.source
    other = Cell.load(next(results.glob("*/baseline-seed0.json")))
    wider = {**other.record["settings"], "training": {**other.record["settings"]["training"], "crop": [640, 1280]}}
    other.path.write_text(json.dumps({**other.record, "settings": wider}))
    assert measured_rates(ws, results).train is None, "large crops say nothing of how fast small ones go"


# ------------------------------------------------------------------------------------------------ freeze


def test_confirming_seeds_are_closed_until_the_recipe_is_frozen(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "labels", "both", seeds=(100, 101))
    with pytest.raises(ConfigError, match="seed 100 is for confirming: freeze generator and recipe first"):
        run_ablation(ws, request)
    assert jobs.trained == []
    record = write_freeze(ws.params, request, (100, 101), variants=4, note="lr 0.1, 0.2 and two crops")
    assert record["variants_tried"] == 4
    assert len(run_ablation(ws, request)) == 2
    with pytest.raises(ConfigError, match="seed 102 is for confirming"):
        run_ablation(ws, replace(request, seeds=(102,)))


def test_a_change_after_the_freeze_closes_the_seeds_again(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(ws, tmp_path, "labels", "both", seeds=(100,))
    write_freeze(ws.params, request, (100,), variants=0, note="as shipped")
    with pytest.raises(ConfigError, match=r"things changed since the freeze, first attention\.training\.epochs"):
        run_ablation(ws, replace(request, scale=Scale(0.5)))
    _edit_code(monkeypatch)
    with pytest.raises(ConfigError, match=r"1 things changed since the freeze, first hmsa_core/losses/rmi\.py"):
        run_ablation(ws, request)


def test_what_was_opened_cannot_be_frozen_anew_and_a_freeze_needs_its_story(
    ws: Workspace, jobs: FakeJobs, tmp_path: Path
) -> None:
    request = ask(ws, tmp_path, "labels", "both", seeds=(100,))
    with pytest.raises(ConfigError, match="how many variants were tried"):
        write_freeze(ws.params, request, (100,), variants=0, note="")
    with pytest.raises(ConfigError, match="confirming seeds are 100 or more, got 3"):
        write_freeze(ws.params, request, (3, 100), variants=0, note="x")
    write_freeze(ws.params, request, (100,), variants=0, note="x")
    run_ablation(ws, request)
    with pytest.raises(ConfigError, match="seed 100 was opened already"):
        write_freeze(ws.params, request, (100, 101), variants=0, note="x")


def test_variants_that_were_replaced_count_as_tried(ws: Workspace, jobs: FakeJobs, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "labels", "both")
    for epochs in (0.25, 0.5, 1.0):
        run_ablation(ws, replace(request, scale=Scale(epochs)))
    assert write_freeze(ws.params, request, (100,), variants=3, note="x")["variants_tried"] == 5


def test_an_edited_freeze_is_refused(ws: Workspace, tmp_path: Path) -> None:
    request = ask(ws, tmp_path, "labels", "both")
    write_freeze(ws.params, request, (100,), variants=3, note="x")
    path = request.folder / "freeze.json"
    path.write_text(path.read_text().replace('"variants_tried": 3', '"variants_tried": 1'))
    with pytest.raises(Exception, match="changed since it was written"):
        read_freeze(request.folder)
