"""docs/results.md: from files alone, nothing invented, everything with its command, seeds, machine and commit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hmsa_core.config import key_material
from hmsa_core.io import atomic, sealed
from hmsa_core.io.errors import HmsaError, InputError, IntegrityError
from pipeline.cli.main import main
from pipeline.keys import open_work
from pipeline.params import Params
from research.ablation.catalogue import make_ablation
from research.ablation.freeze import write_freeze
from research.ablation.material import Scale, cell_material
from research.ablation.run import Request
from research.results.collect import collect
from research.results.page import Sources, results_page
from research.results.readme import readme_table
from research.tests.ablations import CLASSES, bare_workspace, finished_workspace, put_cell


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources.of(tmp_path)


def test_without_files_every_section_says_what_to_run_and_no_number_appears(sources: Sources) -> None:
    page = results_page(sources)
    for command in (
        "make demo",
        "make camvid",
        "make ablation-scales",
        "make ablation-reasons",
        "make ablation-labels",
        "make ablation-threshold",
        "make ablation-merging",
        "make ablation-losses",
        "make camvid-table",
        "make bench",
    ):
        assert f"Not measured yet: `{command}`" in page
    assert page.count("Not measured yet") == 11, "both variants of CamVid"
    assert "| " not in page
    assert "not measured yet" in readme_table(sources)


def test_a_finished_workspace_is_collected_with_machine_commit_and_times(tmp_path: Path, sources: Sources) -> None:
    path = collect(finished_workspace(tmp_path / "ws"), sources.runs)
    assert path.name == "demo.json"
    record = atomic.read_json(path)
    assert record["machine"]["cores"] >= 1
    assert str(tmp_path) not in path.read_text()
    page = results_page(sources)
    assert "| student | multi | 50.00 [40.00, 60.00] | 12 |" in page
    assert "| student - control | +1.20 [-0.30, +2.00] | 12 |" in page
    assert "`multi`: {0.5, 1, 2} + flip; `single`: {1}." in page
    assert "One seed: each side was trained once" in page
    assert "80.00 % of all are kept. Target: 95.00 % for each class." in page
    assert "`make demo`; 204 report images (1 left out" in page
    assert "Seconds of the stages: prepare 3, teacher-train 600; together 10.1 minutes." in page
    assert f"Commit: {record['commit'][:12]}" in page
    assert "Not measured yet: `make camvid`" in page
    assert "| demo: student - control | +1.20 [-0.30, +2.00] |" in readme_table(sources)


def test_camvid_with_another_length_of_its_teacher_is_a_table_of_its_own(sources: Sources) -> None:
    for row, quality in (("control", 0.6), ("merged", 0.8)):
        put_cell(sources.ablations / "camvid-table-default-7777", row, 0, quality)
        put_cell(sources.ablations / "camvid-table-drive_shift-8", row, 0, quality)
    page = results_page(sources)
    assert "## CamVid, variant default, teacher of 7777 epochs" in page
    assert "--rows merged --seeds 0 --workspace workspaces/camvid-7777" in page
    assert "## CamVid, variant drive_shift, teacher of 8 epochs" in page
    assert "## CamVid, variant default\n\nNot measured yet" in page


def test_every_table_of_another_camvid_workspace_has_cells_and_a_section_of_its_own(sources: Sources) -> None:
    for workspace in ("camvid", "camvid-7777", "camvid-drive_shift-8"):
        put_cell(sources.ablations / f"threshold-{workspace}", "policy", 0, 0.6)
    page = results_page(sources)
    for title, workspace in (
        ("CamVid", "camvid"),
        ("CamVid, teacher of 7777 epochs", "camvid-7777"),
        ("CamVid, variant drive_shift, teacher of 8 epochs", "camvid-drive_shift-8"),
    ):
        section = page.split(f"## Thresholds, {title}\n")[1].split("\n## ")[0]
        assert f"WORKSPACE=workspaces/{workspace}`; cells: `research/cells/threshold-{workspace}/`" in section
        assert f"--rows policy --seeds 0 --workspace workspaces/{workspace}`" in section


def test_settings_that_were_edited_after_the_training_are_not_taken_for_its_own(
    tmp_path: Path, sources: Sources
) -> None:
    ws = finished_workspace(tmp_path / "ws")
    made_with = {"config": key_material(ws.params.student_train)}
    open_work(ws.work("student-train"), "student", made_with)
    collect(ws, sources.runs)
    edited = {"config": made_with["config"] | {"epochs": 999}}
    open_work(ws.work("student-train"), "student", edited)  # the last training had another length than params.yaml says
    with pytest.raises(InputError, match="student_train is not what the last student was trained with"):
        collect(ws, sources.runs)


def test_a_workspace_without_results_or_with_other_weights_is_not_collected(tmp_path: Path, sources: Sources) -> None:
    with pytest.raises(InputError, match=r"metrics\.json: not there"):
        collect(bare_workspace(tmp_path / "empty"), sources.runs)
    ws = finished_workspace(tmp_path / "ws")
    meta = {
        "format": "hmsa-model",
        "version": 1,
        "kind": "x",
        "trunk": "x",
        "num_classes": 3,
        "options": {},
        "lineage": {},
        "weights_sha256": "0" * 64,
    }
    sealed.write(ws.path("models/student/model.json"), meta)
    with pytest.raises(InputError, match="other weights than were judged"):
        collect(ws, sources.runs)
    assert not sources.runs.exists()


def test_a_run_or_a_cell_that_lacks_something_is_named_with_what_it_lacks(tmp_path: Path, sources: Sources) -> None:
    path = collect(finished_workspace(tmp_path / "ws"), sources.runs)
    whole = atomic.read_json(path)
    atomic.write_json(path, {key: value for key, value in whole.items() if key != "models"})
    with pytest.raises(IntegrityError, match=r"demo\.json: has no 'models'"):
        results_page(sources)
    atomic.write_json(path, whole)
    atomic.write_json(
        sources.ablations / "scales" / "single-1-seed0.json", {"format": "hmsa-ablation-cell", "version": 1}
    )
    with pytest.raises(IntegrityError, match=r"single-1-seed0\.json: has no 'ablation'"):
        results_page(sources)


def test_a_table_shows_rows_claims_verdicts_and_what_is_missing(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    for seed in (0, 1):
        put_cell(folder, "both", seed, 0.85, title="+ both")
        put_cell(folder, "attention", seed, 0.6, title="+ attention")
    page = results_page(sources)
    assert "| + both | 0, 1 |" in page
    assert "| both > attention alone (`both` - `attention`) | +" in page
    assert "| shown |" in page
    assert "Not measured yet: rows baseline, auto, coarse, both-coarse." in page
    assert "Machine: A processor, 2 cores. python 3, torch 2. Commit: c0ffeec0ffee." in page
    assert "Not frozen" in page
    assert "both > attention alone" in readme_table(sources)
    (by_class,) = re.findall(r"^\| `both` - `attention` \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert sorted(re.findall(r"(\w+) \+\d", by_class[0])) == sorted(CLASSES)
    assert by_class[1] == "-"
    assert "One seed: each side was trained once" not in page


def test_a_verdict_of_one_seed_is_marked_also_where_both_rows_are_fusions_of_one_training(sources: Sources) -> None:
    folder = sources.ablations / "scales"
    for row, quality in (("average-0.25-0.5-1-2", 0.3), ("average-0.5-1-2", 0.6)):
        put_cell(folder, row, 0, quality)
    page = results_page(sources)
    assert "| adding 0.25x hurts average" in page
    assert "| suggested (one seed) |" in page
    assert "Corrected for being" not in page, "of one difference there is nothing to correct"
    assert "One seed: each side was trained once" in page
    for seed in (1, 2):
        for row, quality in (("average-0.25-0.5-1-2", 0.3), ("average-0.5-1-2", 0.6)):
            put_cell(folder, row, seed, quality)
    page = results_page(sources)
    assert "| shown |" in page
    assert "(one seed)" not in page.split("## Fusing scales")[1]


def test_each_seeds_own_difference_stands_beside_their_mean(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    for seed, gain in ((0, 0.2), (1, 0.0)):
        put_cell(folder, "both", seed, 0.6 + gain)
        put_cell(folder, "attention", seed, 0.6)
    (cell,) = re.findall(
        r"^\| both > attention alone .* \| 0: (\S+), 1: (\S+) \| 24 \|", results_page(sources), re.MULTILINE
    )
    assert float(cell[0]) > 10
    assert cell[1] == "+0.00"
    assert "| not shown |" in results_page(sources), "two seeds that differ by so much show nothing"


def test_cells_of_other_data_or_another_start_are_named(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    put_cell(folder, "both", 0, 0.8)
    put_cell(folder, "attention", 0, 0.6)
    page = results_page(sources)
    assert "The same in all cells, by digest: fine images and labels `ffffffffffff`, weights at the start" in page
    assert "Not the same in all cells" not in page
    other = {"images_seen": 1000, "seconds": 10.0, "weights_sha256": "w", "fine": "e" * 64, "start": "5" * 64}
    put_cell(folder, "auto", 0, 0.6, training=other)
    assert "**Not the same in all cells: fine images and labels differ in auto.**" in results_page(sources)


def test_how_far_trainings_of_one_row_lie_apart_stands_under_the_claims(sources: Sources) -> None:
    for seed, score in enumerate((0.50, 0.53, 0.52)):
        put_cell(sources.ablations / "labels", "both", seed, 0.85, mean_iou=score)
    apart = "lie 2.16 points apart (root mean square of 3 pairs of trainings), at most 3.00."  # 3, 2 and 1
    assert apart in results_page(sources)


def test_classes_of_equal_iou_are_not_named_by_guess(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    for row in ("both", "attention"):
        put_cell(folder, row, 0, 0.85, iou=dict.fromkeys(CLASSES, 0.5))
    assert "By class: not shown" in results_page(sources)
    put_cell(folder, "attention", 0, 0.6)  # one cell that tells them is enough
    assert "<summary>What each difference is made of: the classes whose own interval" in results_page(sources)


def test_weights_classes_notes_and_accepted_changes_are_shown(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    weights = {s: {p: dict.fromkeys(CLASSES, 0.25) for p in ("interior", "band")} for s in ("0.5", "1")}
    mean = {"0.5": {"interior": 0.75, "band": 0.4}, "1": {"interior": 0.25, "band": None}}
    labels = {"labelled_share": 0.61, "classes": {n: {"share": 0.2, "human": 0, "teacher": 0} for n in CLASSES}}
    put_cell(
        folder,
        "coarse",
        0,
        0.8,
        details={"mean_weights": mean, "weights": weights},
        labels=labels,
        accepted=[{"reason": "bit-identical", "from_key": "k", "differs": []}],
    )
    (folder / "notes.md").write_text("The paper finds the opposite; `tests/x.py` shows why.\n")
    page = results_page(sources)
    assert "| coarse | 0.5x | 0.750 | 0.400 |" in page
    assert "| coarse | 1x | 0.250 | - |" in page
    assert "| pole | 20.00 |" in page
    assert "| all labelled | 61.00 |" in page
    assert "The paper finds the opposite" in page
    assert "<summary>Cells older than the code: 1; each change of it was accepted for a reason (1)</summary>" in page
    assert "- bit-identical. Rows and seeds: coarse (0)." in page
    (folder / "notes.md").write_text("# A title\n")
    with pytest.raises(HmsaError, match="paragraphs, not sections"):
        results_page(sources)


def test_weights_by_class_are_those_of_the_hierarchical_row_with_most_scales(sources: Sources) -> None:
    for row, scales, share in (
        ("hierarchical-0.5-1", ("0.5", "1"), 0.5),
        ("hierarchical-0.5-1-2", ("0.5", "1", "2"), 0.3),
        ("explicit-0.5-1-2", ("0.5", "1", "2"), 0.9),
    ):
        weights = {s: {p: dict.fromkeys(CLASSES, share) for p in ("interior", "band")} for s in scales}
        mean = {s: {"interior": share, "band": share} for s in scales}
        put_cell(sources.ablations / "scales", row, 0, 0.8, details={"mean_weights": mean, "weights": weights})
    page = results_page(sources)
    assert "<summary>The weights by class, row <code>hierarchical-0.5-1-2</code></summary>" in page
    assert "| pole | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 |" in page


def test_cells_of_different_sources_are_told(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    put_cell(folder, "both", 0, 0.8)
    put_cell(folder, "attention", 0, 0.6, code={"a.py": "2", "b.py": "1"})
    assert "Not all cells were made with the same sources: `a.py` differ." in results_page(sources)


def test_confirming_seeds_stand_apart_under_their_freeze(sources: Sources) -> None:
    params = Params.of_profile("demo")
    table = make_ablation("labels", params)
    request = Request(table, table.rows, (100,), sources.ablations, Scale())
    folder = sources.ablations / "labels"
    rows = dict(zip(("both", "attention"), table.pick(["both", "attention"])[::-1], strict=True))
    for name, row in rows.items():
        for seed in (0, 100):
            made = cell_material(params, row, seed, Scale())
            put_cell(folder, name, seed, 0.8, settings=made.settings, code=made.code)
    assert "No freeze is there for these seeds" in results_page(sources)
    for name in rows:
        (folder / f"{name}-seed100.json").rename(folder / f"{name}.kept")
    write_freeze(params, request, (100,), variants=6, note="Three rates were tried.")
    for name in rows:
        (folder / f"{name}.kept").rename(folder / f"{name}-seed100.json")
    page = results_page(sources)
    assert (
        "Frozen before the confirming seeds 100 were opened: 6 variants tried before. Three rates were tried." in page
    )
    assert page.index("**Exploring seeds**") < page.index("**Confirming seeds")
    assert "Not as frozen" not in page
    made = cell_material(params, rows["both"], 100, Scale(0.5))
    put_cell(folder, "both", 100, 0.9, settings=made.settings, code=made.code | {"hmsa_core/losses/rmi.py": "0"})
    told = next(line for line in results_page(sources).splitlines() if line.startswith("Not as frozen"))
    assert told == "Not as frozen: both seed 100 (training.epochs, hmsa_core/losses/rmi.py)."


def test_the_same_files_give_the_same_page(sources: Sources) -> None:
    put_cell(sources.ablations / "labels", "both", 0, 0.8)
    assert results_page(sources) == results_page(sources)


def test_the_command_writes_the_page_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["results"]) == 2, "no page of another folder is written anew"
    assert "no checkout (no research/cells here)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "research" / "cells").mkdir(parents=True)
    ws = finished_workspace(tmp_path / "ws", "camvid")
    missing = tmp_path / "none"
    arguments = ["results", "--collect", str(ws.root), "--collect", str(missing)]
    assert main([*arguments, "--if-there"]) == 0
    assert "left out" in capsys.readouterr().err
    assert "| student | multi |" in (tmp_path / "docs" / "results.md").read_text()
    assert main(arguments) == 3
    capsys.readouterr()
    assert main(["results", "--repository", str(tmp_path), "--table"]) == 0
    assert "| camvid: student - control | +1.20" in capsys.readouterr().out


def test_the_committed_page_is_what_its_files_give(repo: Path) -> None:
    assert (repo / "docs" / "results.md").read_text() == results_page(Sources.of(repo)), "run `make results`"
