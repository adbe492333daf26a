"""The whole chain under real DVC, profile `tiny`: runs once, and afterwards only what a change demands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from hmsa_core.labels import LabelStore
from hmsa_core.labels.thresholds.curves import Curves
from pipeline.workspace.table import STAGES, TABLE
from tests.support.chain import BIN, REPO, Whole, add_images, change_param, dvc, environment, lock_file, run, set_params
from tests.support.damage import flip

pytestmark = pytest.mark.chain


@pytest.mark.once
def test_one_repro_runs_all_nine_stages_with_two_ranks(whole: Whole) -> None:
    root, done = whole.root, whole.done
    assert tuple(done.ran) == STAGES
    for stage in ("teacher-train", "auto-infer"):
        specs = [json.loads(p.read_text()) for p in (root / "work" / stage).glob("*/spec.json")]
        assert [s["config"]["runtime"]["ranks"] for s in specs] == [2]


@pytest.mark.once
def test_everything_that_the_design_names_is_there(whole: Whole) -> None:
    root = whole.root
    for path in (
        "data/index/target.parquet",
        "data/index/quarantine.parquet",
        "models/pretrain/model.json",
        "models/teacher/lineage.json",
        "models/student/model.safetensors",
        "models/control/model.json",
        "calibration/curves.json",
        "calibration/table.json",
        "calibration/policy.json",
        "labels/raw/manifest.json",
        "labels/final/centroids.parquet",
        "labels/final/statistics.json",
        "evaluation/metrics.json",
        "evaluation/verdict.json",
        "evaluation/confusions-teacher.npz",
        "evaluation/confusions-control.npz",
        "report/index.html",
        "plots/evaluate-confusion.png",
    ):
        assert (root / path).is_file(), path
    for stage in STAGES:
        assert (root / "metrics" / f"{stage}.json").is_file()
        assert json.loads((root / "work" / "times" / f"{stage}.json").read_text())["seconds"] > 0


def test_git_sees_only_the_lock_file_and_the_metrics_and_the_teacher_was_scored_while_it_learned(whole: Whole) -> None:
    changed = run(whole.root, "git", "--no-optional-locks", "status", "--porcelain").text.splitlines()
    assert {line[3:].split("/")[0] for line in changed} <= {"dvc.lock", "metrics"}, changed
    scores = json.loads((whole.root / "metrics/teacher-train.json").read_text())["teacher"]["validation"]
    assert len(scores) == 2, "profile tiny: 8 epochs, every 4"
    assert all(0.0 < score < 1.0 for score in scores.values())


@pytest.mark.once
def test_a_second_repro_does_nothing(workspace: Path) -> None:
    lock = lock_file(workspace)
    assert dvc(workspace, "repro").ran == []
    assert lock_file(workspace) == lock


def test_a_changed_threshold_trains_no_teacher_and_infers_nothing(workspace: Path) -> None:
    change_param(workspace, "  threshold: policy", "  threshold: 0.5")
    assert dvc(workspace, "repro").ran == ["pseudo-label", "student-train", "evaluate", "report"]
    policy = LabelStore.open(workspace / "labels" / "final", strict=True).manifest["policy"]
    assert {float(t) for t in policy["thresholds"].values()} == {0.5}


def test_a_threshold_off_the_grid_is_one_line_with_its_neighbours(workspace: Path) -> None:
    change_param(workspace, "  threshold: policy", "  threshold: 0.8765")
    done = dvc(workspace, "repro", "pseudo-label", status=None)
    assert done.status != 0
    reported = "expected a number on the grid of the confidence code, such as its neighbours 0.87 or 0.88, found 0.8765"
    assert f"pseudo_label.threshold: {reported}" in done.text


@pytest.mark.slow
def test_a_changed_target_precision_measures_again_without_a_new_inference(workspace: Path) -> None:
    change_param(workspace, "  target: 0.51", "  target: 0.6")
    before = {p: p.stat().st_mtime_ns for p in (workspace / "work" / "calibrate").rglob("shard-*.parquet")}
    done = dvc(workspace, "repro", "pseudo-label")
    assert set(done.ran) <= {"calibrate", "pseudo-label"}
    assert "calibrate" in done.ran
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert json.loads((workspace / "calibration" / "policy.json").read_text())["settings"]["target"] == 0.6
    set_params(workspace, {"calibrate.region": "outside_coarse"})
    dvc(workspace, "repro", "pseudo-label")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    everywhere, judged = (Curves.load(workspace / "calibration" / f) for f in ("curves.json", "curves-judged.json"))
    assert 0 < judged.counts["total"].sum() < everywhere.counts["total"].sum(), "polygons are left out"
    assert LabelStore.open(workspace / "labels" / "final", strict=True).manifest["policy"] is not None


def test_only_new_images_are_labelled(workspace: Path) -> None:
    (new,) = add_images(workspace)
    shards = {p.name: p.read_bytes() for p in (workspace / "labels" / "raw").glob("shard-*.parquet")}
    done = dvc(workspace, "repro", "auto-infer")
    assert done.ran == ["prepare", "auto-infer"], "neither teacher nor calibration depends on new images"
    after = {p.name: p.read_bytes() for p in (workspace / "labels" / "raw").glob("shard-*.parquet")}
    assert {name: after[name] for name in shards} == shards
    names = LabelStore.open(workspace / "labels" / "raw", strict=True).names()
    assert new in names
    assert len(after) == len(shards) + 1


def test_deleted_outputs_come_back_from_the_run_cache_without_running(workspace: Path) -> None:
    lock = lock_file(workspace)
    for name in ("work", "plots", *(out for row in TABLE for out in row.outs)):
        path = workspace / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (workspace / "dvc.lock").unlink()
    done = dvc(workspace, "repro")
    assert done.ran == []
    assert done.text.count("is cached - skipping run") == len(STAGES) + 1, "the stage settings, too"
    assert lock_file(workspace) == lock
    assert not (workspace / "work" / "teacher-train").exists()


@pytest.mark.slow
def test_the_same_parameters_give_the_same_bytes_without_any_progress_left(workspace: Path) -> None:
    lock = lock_file(workspace)
    for stage in ("prepare", "teacher-pretrain", "calibrate", "pseudo-label"):
        shutil.rmtree(workspace / "work" / stage)
        assert dvc(workspace, "repro", "--single-item", "--force", stage).ran == [stage]
    assert lock_file(workspace) == lock


def test_the_chain_runs_without_dvc_which_takes_over_again_after_a_commit(workspace: Path) -> None:
    lock = yaml.safe_load(lock_file(workspace))["stages"]
    for out in ("dvc.lock", "data/index", "models/teacher", "calibration"):
        path = workspace / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    command = [BIN / "autolabel", "run", "--to", "calibrate"]
    with subprocess.Popen(
        command, cwd=workspace, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as stopped:
        assert stopped.stderr is not None
        assert any("prepare: done" in line for line in stopped.stderr)
        stopped.terminate()
        rest = stopped.stderr.read()
    assert (stopped.returncode, "calibrate: done" in rest) == (143, False)
    printed = run(workspace, "autolabel", "run", "--to", "calibrate").text
    assert re.findall(r"([a-z-]+): done in", printed) == list(STAGES[: STAGES.index("calibrate") + 1])
    dvc(workspace, "commit", "--force")
    assert dvc(workspace, "repro").ran == []
    again = yaml.safe_load(lock_file(workspace))["stages"]
    assert again == lock, "the same bytes as under DVC"


def test_metrics_and_plots_work_offline(workspace: Path) -> None:
    shown = json.loads(dvc(workspace, "metrics", "show", "--json").text.splitlines()[-1])
    figures = shown[""]["data"]["metrics/evaluate.json"]["data"]
    assert set(figures["mean_iou"]) == {"teacher", "student", "control"}
    run(workspace, "git", "add", "-A")
    run(workspace, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "first")
    assert dvc(workspace, "metrics", "diff", "--json").text.strip().splitlines()[-1] == "{}"
    dvc(workspace, "plots", "show", "-o", "pictures")
    assert len(list((workspace / "pictures").rglob("*.png"))) >= 8
    assert "https://" not in (workspace / "pictures" / "index.html").read_text().split("<body>")[1]


def test_the_summary_is_short_and_says_what_was_gained_and_where_to_look(whole: Whole) -> None:
    text = run(REPO, "autolabel", "stage", "--summary", "--workspace", str(whole.root)).text
    assert [line[:9].strip() for line in text.splitlines() if line[0] != " "] == [
        *("learned", "labelled", "kept", "gained", "next")
    ]
    assert len(text.splitlines()) <= 10
    assert "autolabel serve labels/raw" in text


def test_advice_names_what_people_should_label_on_the_terminal_and_on_the_report_page(whole: Whole) -> None:
    text = run(REPO, "autolabel", "advise", "--workspace", str(whole.root)).text
    found = json.loads(run(REPO, "autolabel", "advise", "--workspace", str(whole.root), "--json").text)
    assert (found["labels"], found["fine"], found["unlabelled"]) == ("policy", 22, 14)
    page = (whole.root / "report" / "index.html").read_text("utf-8")
    for reported in (*found["sentences"], *(one["name"] for one in found["collect"])):
        assert reported in text
        assert reported in page
    assert "What the student learns from" in page


def test_every_column_of_the_report_explains_itself_at_the_mouse_and_in_its_last_section(whole: Whole) -> None:
    page = (whole.root / "report/index.html").read_text("utf-8")
    columns = re.findall(r"<th([^>]*)>([^<]+)</th>", page)
    assert len(columns) > 60
    assert [name for attributes, name in columns if "title=" not in attributes] == []
    listed = page.partition("What the names mean")[2]
    for _, attributes in set(re.findall(r"<th( title='([^']*)')", page)):
        assert f"<dd>{attributes}</dd>" in listed


def test_a_damaged_raw_store_is_named_and_not_used(workspace: Path) -> None:
    shard = sorted((workspace / "labels" / "raw").glob("shard-*.parquet"))[1]
    flip(shard)
    done = run(workspace, "autolabel", "stage", "pseudo-label", status=4)
    assert shard.name in done.text
