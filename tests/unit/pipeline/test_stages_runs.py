"""Stages in this process on a small data set of plain folders: indexes by role, records, checks before the start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.data.index import Index
from hmsa_core.io import atomic, sealed
from hmsa_core.io.errors import ConfigError, InputError, NoSpaceError
from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.review import ReviewFile
from hmsa_core.lineage import Lineage
from hmsa_core.spec import InferSpec
from hmsa_core.taxonomy import plain
from pipeline.cli import stage as stage_cli
from pipeline.jobs import support
from pipeline.jobs.measure import chosen_policy
from pipeline.jobs.support import infer_store
from pipeline.report.build import render
from pipeline.report.facts import collect
from pipeline.report.results import over, summary_text
from pipeline.stages import auto_infer, calibrate, evaluate, prepare, pseudo_label, runner, teacher_pretrain
from pipeline.stages.time_left import images_of, seconds_left, work_of
from pipeline.workspace import settings
from pipeline.workspace.named_files import check_named_files
from pipeline.workspace.workspace import Workspace
from tests.support.checkpoints import checkpoint
from tests.support.label_maps import maps, write_store
from tests.support.own_folders import six_images
from tests.support.photographs import edited, photograph, photographs, work_over

pytestmark = pytest.mark.long

REPO = Path(__file__).resolve().parents[3]
CITIES = {"learn": "abcd", "calibrate": "ef", "report": "gh", "unlabelled": "ij"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of ten cities; two of them without labels. Look, do not touch."""
    return photographs(tmp_path_factory.mktemp("photographs") / "data", "abcdefgh", "ij", "extra", 7)


@pytest.fixture
def ws(tmp_path: Path, data: Path, no_tools: None) -> Workspace:
    """A workspace over the photographs with roles by city, without a pretraining set."""
    changes = {"data.target.max_bad": 0.5}
    return work_over(tmp_path / "ws", data, "extra", calibrate="ef", report="gh", changes=changes)


@pytest.fixture
def copied(ws: Workspace, data: Path, tmp_path: Path) -> tuple[Workspace, Path]:
    """The workspace with a copy of the images that the test may change, and that copy."""
    copy = shutil.copytree(data, tmp_path / "more")
    return edited(ws, {"data.target.root": str(copy)}), copy


def _checkpoint(ws: Workspace, name: str, digit: str) -> None:
    """A checkpoint that learned from nothing; nobody opens the weights in these tests."""
    checkpoint(ws.path(f"models/{name}"), lineage=Lineage(), weights_sha256=digit * 64)


def test_prepare_writes_one_index_a_role_and_the_same_bytes_again(ws):
    prepare.run(ws)
    for role, cities in CITIES.items():
        index = Index.load(ws.path(f"data/index/{role}.parquet"))
        assert sorted(s.name[0] for s in index.samples) == list(cities), role
    first = {p.name: p.read_bytes() for p in ws.path("data/index").iterdir()}
    prepare.run(ws)  # everything is known now
    assert {p.name: p.read_bytes() for p in ws.path("data/index").iterdir()} == first
    shutil.rmtree(ws.path("work"))
    prepare.run(ws)
    assert {p.name: p.read_bytes() for p in ws.path("data/index").iterdir()} == first


def test_prepare_says_who_does_what_and_what_was_left_out(copied, caplog):
    ws, data = copied
    next((data / "images").rglob("*.png")).write_bytes(b"this is text")
    with caplog.at_level("INFO"):
        prepare.run(ws)
    message = "\n".join(caplog.messages)
    assert re.search(r"prepare target: \d+ images: .*\d+ learn", message)
    assert "left out: 1 not-an-image: images/extra/i_0001.png: not a PNG, JPEG, WebP or TIFF image (all are" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("evaluate.gate.class_allowances", {"buliding": 0.1}, r"gate\.class_allowances: no class is called 'buli"),
        ("evaluate.gate.veto_recall", ["road", "bycicle"], r"gate\.veto_recall: no class is called 'bycicle'"),
        ("data.roles.calibrate", ["e", "ff"], r"params\.yaml: data\.roles\.calibrate: no image is of 'ff'"),
        ("data.target.root", "/gone", "/gone: data set folder not found"),
        ("data.roles.calibrate", list("abcdef"), "no image with a fine label has role learn"),
    ],
)
def test_prepare_names_what_is_not_there(ws, key, value, words):
    with pytest.raises((ConfigError, InputError), match=words) as error:
        prepare.run(edited(ws, {key: value}))
    if value == "/gone":
        assert error.value.hint == "correct data.target.root in params.yaml"
    assert "role learn" not in words or "data.roles.learn_splits" in error.value.hint


def test_a_misspelt_class_is_answered_with_the_class_as_it_is_spelt(ws):
    params = edited(ws, {"calibrate.overrides": {"raod": 0.9}}).params
    with pytest.raises(ConfigError, match=r"calibrate\.overrides: no class is called 'raod'; did you mean Road\?"):
        prepare._check_class_names(params, plain(["Road", "Sky"]))


NOBODY_CALIBRATES = {"data.roles.calibrate": [], "teacher_train.validate_every": 0, "student_train.validate_every": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            NOBODY_CALIBRATES,
            "threshold is policy, but no image with a fine label has role calibrate: pseudo-label will stop",
        ),
        ({"data.roles.report": []}, "no image with a fine label has role report: nothing will be judged"),
        (
            {"data.roles.unlabelled_splits": []},
            "no image has role unlabelled: auto-infer will stop, after the teacher's training",
        ),
        (
            {"calibrate.region": "outside_coarse"},
            "none of the 2 images of role calibrate has a coarse label: calibrate will stop; set calibrate.region to all",
        ),
    ],
)
def test_prepare_tells_which_later_stage_will_stop_for_want_of_images(ws, caplog, changes, words):
    prepare.run(ws)
    assert words not in caplog.text
    prepare.run(edited(ws, changes))
    assert words in caplog.text


@pytest.mark.usefixtures("no_tools")
def test_prepare_names_settings_of_the_data_set_at_hand(tmp_path, said, caplog):
    said("init", tmp_path / "ws", *six_images(tmp_path).arguments)
    none = {"data.target.deal": {"calibrate": 0.0, "report": 0.0, "unlabelled": 0.0}}
    prepare.run(edited(Workspace(tmp_path / "ws"), none))
    assert "raise data.target.deal.report, or label images of more places" in caplog.text
    assert "auto-infer will stop, after the teacher's training; add images without labels" in caplog.text
    assert "data.roles" not in caplog.text, "plain folders have no such settings"


def test_prepare_tells_of_folders_that_dvc_does_not_look_behind(copied, tmp_path, caplog):
    ws, data = copied
    shutil.move(data, tmp_path / "real")
    data.symlink_to(tmp_path / "real")  # a root that is a link is looked behind
    prepare.run(ws)
    assert "linked" not in caplog.text
    shutil.move(tmp_path / "real" / "labels", tmp_path / "elsewhere")
    (tmp_path / "real" / "labels").symlink_to(tmp_path / "elsewhere")
    prepare.run(Workspace(ws.root))
    assert "real holds linked folders (labels): DVC does not see changes behind them" in caplog.text


def test_prepare_tells_of_labels_and_images_that_nothing_uses(copied, tmp_path, caplog):
    ws, data = copied
    prepare.run(ws)
    assert "used" not in caplog.text
    assert "outside" not in caplog.text
    photograph(data, "k", "train", np.random.Generator(np.random.PCG64(9)))
    for part in ("images", "labels"):
        (data / part / "later").mkdir()
        (data / part / "train/k_0001.png").rename(data / part / "later/k_0001.png")
    (data / "images/drive9").mkdir()
    shutil.copy(data / "images/later/k_0001.png", data / "images/drive9")
    (data / "labels").rename(tmp_path / "labels")
    splits = [*ws.params.data.target.splits, "later"]
    prepare.run(edited(ws, {"data.target.splits": splits, "data.target.labels": str(tmp_path / "labels")}))
    assert "1 images of split later have fine labels and are used for nothing: name the split" in caplog.text
    assert "holds images in folders that data.target.splits does not name, and they are not used: drive9" in caplog.text
    assert f"data: labels {tmp_path / 'labels'} lies outside of {data}" in caplog.text


def test_prepare_tells_of_a_class_that_no_label_shows(copied, caplog):
    ws, data = copied
    prepare.run(ws)
    assert "shows" not in caplog.text
    for file in (data / "labels").rglob("*.png"):
        label = np.asarray(Image.open(file)).copy()
        label[label == 0] = 255
        Image.fromarray(label).save(file)
    prepare.run(Workspace(ws.root))
    assert "no label of role learn shows road: no network can learn that" in caplog.text


def test_prepare_tells_of_near_copies_before_anything_is_trained(copied, caplog):
    ws, data = copied
    prepare.run(ws)
    assert "near copies" not in caplog.text
    judged, learned = (data / f"images/train/{city}_0001.png" for city in "ga")
    brighter = np.clip(np.asarray(Image.open(judged)).astype(int) + 4, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(learned)
    prepare.run(Workspace(ws.root))
    message = next(line for line in caplog.messages if "near copies" in line)
    assert re.match(r"prepare: 1 of \d+ images of role report are near copies or neighbours", message)
    assert "evaluate will " in message
    assert f"{judged.stem} of {learned.stem} (perceptual hash" in message


def test_prepare_tells_of_too_few_blocks_for_any_threshold(ws, caplog):
    prepare.run(ws)
    assert "prepare: 2 block(s)" in caplog.text
    assert "calibrate, calibrate.min_blocks is 3: no class gets a threshold of its own" in caplog.text
    caplog.clear()
    prepare.run(edited(ws, {"pseudo_label.threshold": 0.9}))
    assert "calibrate.min_blocks" not in caplog.text


def test_two_trunks_that_must_be_one_are_reported_before_anything_is_trained(ws):
    ws = edited(ws, {"student_train.model.trunk": "hrnet_tiny"})
    for stage in ("prepare", "calibrate", "student-train"):
        with pytest.raises(ConfigError, match=r"student_train\.model\.trunk is hrnet_tiny, but it starts from the"):
            runner.run_stage(ws, stage)
    check_named_files(ws.root, ws.params, "evaluate")  # nobody trains from here on


@pytest.mark.parametrize(
    ("key", "value", "reader", "what"),
    [
        ("pseudo_label.threshold", "policies/x.json", "pseudo-label", "no such file"),
        ("pseudo_label.merge.mask", "nope.png", "auto-infer", "no such file"),
        ("teacher_pretrain.init_from", "models", "teacher-pretrain", "no checkpoint folder"),
        ("student_train.init", "models/none", "student-train", "no checkpoint folder"),
        ("student_train.model.trunk_weights", "trunk.pth", "student-train", "no such file"),
        ("teacher_train.model.trunk_weights", "trunk.pth", "teacher-train", "no such file"),
        ("student_train.stores", "../gone/labels/final", "student-train", "no such file"),
        ("auto_infer.teacher", "onnx:net.onnx", "evaluate", "no such file"),
        ("auto_infer.teacher", "models?map=gone.yaml", "evaluate", "no such file"),
    ],
)
def test_files_that_params_names_are_missed_at_once(ws, key, value, reader, what):
    start = {"student_train.init": "pretrained"} if "trunk_weights" in key else {}
    ws = edited(ws, start | {key: [{"store": value}] if key.endswith("stores") else value})
    key, value = re.escape(key), re.escape(value)
    for stage in ("prepare", reader):
        with pytest.raises(ConfigError, match=f"{key}: {value}: {what}"):
            runner.run_stage(ws, stage)
    check_named_files(ws.root, ws.params, "report" if reader == "evaluate" else "evaluate")  # nobody reads them then


def test_files_that_are_there_are_not_missed(ws):
    ws.path("trunk.pth").touch()
    given = {"init": "pretrained", "model.trunk_weights": "trunk.pth", "stores": [{"store": "../ws/labels/final"}]}
    changes = {f"student_train.{key}": value for key, value in given.items()}
    ws = edited(ws, changes | {"auto_infer.teacher": ["onnx:trunk.pth", "models/teacher", "s3://lab/x"]})
    check_named_files(ws.root, ws.params)


def test_a_stage_runs_in_the_folder_of_its_workspace_as_under_dvc(ws, monkeypatch, said):
    seen: list[Path] = []
    monkeypatch.setattr(stage_cli, "die_with_parent", lambda _signal: None)
    monkeypatch.setattr(stage_cli, "prepare_process", lambda _ws: None)
    monkeypatch.setattr(runner, "run_stage", lambda _ws, _stage: seen.append(Path.cwd()))
    said("stage", "prepare", "--workspace", ws.root)
    assert seen == [ws.root]


def test_new_unlabelled_images_change_no_other_index(copied):
    ws, data = copied
    prepare.run(ws)
    before = {role: ws.path(f"data/index/{role}.parquet").read_bytes() for role in CITIES}
    photograph(data, "k", "extra", np.random.Generator(np.random.PCG64(99)))
    prepare.run(ws)
    changed = [role for role in CITIES if ws.path(f"data/index/{role}.parquet").read_bytes() != before[role]]
    assert changed == ["unlabelled"]


def test_without_a_pretraining_set_a_record_says_so(ws):
    prepare.run(ws)
    teacher_pretrain.run(ws)
    record = json.loads(ws.path("models/pretrain/skipped.json").read_text())
    assert "nothing to pretrain" in record["reason"]
    assert "nothing to pretrain" in json.loads(ws.path("metrics/teacher-pretrain.json").read_text())["skipped"]
    assert ws.path("plots/teacher-pretrain-loss.png").is_file()
    ws = edited(ws, {"teacher_pretrain.init_from": "models/imported"})
    with pytest.raises(ConfigError, match=r"teacher_pretrain\.init_from is models/imported, but .*") as error:
        teacher_pretrain.run(ws)  # weights that nobody would use, without a word
    assert "teacher_train.init_from" in error.value.hint


def test_without_images_to_judge_on_the_student_is_recorded_as_unverified_and_never_promoted(ws, caplog):
    no_judges = {"data.roles.report": [], "data.roles.calibrate": []}
    prepare.run(edited(ws, no_judges | {"pseudo_label.threshold": 0.9}))
    assert re.search(r"teacher_train\.validate_every is \d+, but no image .* has role calibrate", caplog.text)
    ws = edited(ws, NOBODY_CALIBRATES)
    prepare.run(ws)
    for name, digit in (("teacher", "a"), ("student", "b"), ("control", "c")):
        _checkpoint(ws, name, digit)
    calibrate.run(ws)
    assert "nothing can be measured" in json.loads(ws.path("calibration/skipped.json").read_text())["reason"]
    evaluate.run(ws)
    verdict = json.loads(ws.path("evaluation/verdict.json").read_text())
    assert verdict["promote"] is False
    assert verdict["candidate_weights_sha256"] == "b" * 64
    assert "unverified" in summary_text(ws)
    assert "unverified" in render(collect(ws), [], title="")
    assert "unverified" in "".join(table.text() for table in over({"mine": ws}))


def test_the_estimate_is_compared_with_the_free_disk_before_anything_starts(ws, monkeypatch):
    prepare.run(ws)
    usage = shutil.disk_usage(ws.root)._replace(free=70 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(NoSpaceError, match=r"teacher-train needs about .* GiB in .*, 0\.07 GiB are free") as caught:
        runner.run_stage(ws, "teacher-train")
    assert caught.value.exit_code == 28
    assert not ws.path("models/teacher").exists()
    assert auto_infer.disk_estimate(ws) > 0


def test_a_stage_records_its_time_and_memory_outside_of_the_outputs(ws):
    runner.run_stage(ws, "prepare")
    record = json.loads(ws.path("work/times/prepare.json").read_text())
    assert record["seconds"] >= 0
    assert record["peak_memory_bytes"] > 10 << 20
    assert "seconds" not in ws.path("metrics/prepare.json").read_text()


def test_time_left_grows_with_what_is_still_to_train(ws):
    prepare.run(ws)
    assert seconds_left(ws, "prepare") is None  # nothing was timed yet
    atomic.write_json(ws.path("work/times/teacher-train.json"), {"seconds": 100.0})
    images = images_of(ws)
    left, work = seconds_left(ws, "teacher-train"), work_of(ws.params, images)
    longer = edited(ws, {"student_train.epochs": 4})
    twice = seconds_left(longer, "teacher-train")
    assert left is not None
    assert twice is not None
    assert twice - left == pytest.approx(100 * work["student-train"] / work["teacher-train"])
    assert seconds_left(ws, "evaluate") is None  # student-train has left no time
    crops = ws.params.teacher_train.epochs * (ws.params.teacher_train.epoch_samples or 4)
    speed = {"teacher": {"images_per_s": crops / 400}}  # 300 s before a stop, 100 s after it
    atomic.write_json(ws.path("work/times/teacher-train-training.json"), speed)
    assert seconds_left(ws, "teacher-train") == pytest.approx(4 * left)
    explicit = work_of(edited(ws, {"teacher_train.model.kind": "explicit"}).params, images)["teacher-train"]
    assert explicit / work["teacher-train"] == pytest.approx((0.25 + 1 + 4) / (0.25 + 1)), "a third scale"


def test_another_file_of_trunk_weights_is_another_training(ws, monkeypatch):
    prepare.run(ws)
    monkeypatch.setattr(support, "run_job", lambda *_: None)
    weights = ws.path("trunk.safetensors")
    config = ws.params.student_train.model_copy(deep=True)
    config = config.model_copy(update={"model": config.model.model_copy(update={"trunk_weights": str(weights)})})
    fine = support.fine_data(ws)
    folders = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        folders.append(support.train_model(ws, "student-train", "student", config, fine))
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize(("key", "refused"), [("data.target.max_bad", True), ("evaluate.draws", False)])
def test_parameters_that_changed_while_a_stage_ran_are_never_recorded_as_its_own(ws, monkeypatch, key, refused):
    whole_run = prepare.run
    change = {key: 0.4 if refused else 999}
    before = settings.resolved_text(ws.params)
    monkeypatch.setattr(prepare, "run", lambda of: whole_run(of) or edited(of, change))
    runner.run_stage(Workspace(ws.root), "prepare")
    assert ws.path("settings.yaml").read_text() == before, "an edit counts from the next run on: dvc records these"
    edited(ws, {"data.target.max_bad": 0.3})
    monkeypatch.setattr(prepare, "run", lambda of: whole_run(of) or settings.write_resolved(edited(of, change)))
    error = pytest.raises(ConfigError, match=r"settings\.yaml: data\S* was changed while prepare ran")
    with error if refused else nullcontext():  # another stage was started after an edit
        runner.run_stage(Workspace(ws.root), "prepare")  # dvc records nothing of a stage that failed


@pytest.mark.parametrize("times", [1, 99])
def test_images_that_arrive_while_prepare_runs_are_indexed_or_named(copied, monkeypatch, caplog, times):
    ws, folder = copied
    whole_run, runs = prepare.run, []

    def run(of: Workspace) -> None:
        whole_run(of)
        runs.append(len(runs))
        if len(runs) <= times:
            photograph(folder, f"new{'abcd'[len(runs) - 1]}", "extra", np.random.default_rng(len(runs)))

    monkeypatch.setattr(prepare, "run", run)
    runner.run_stage(ws, "prepare")
    names = {sample.name for sample in Index.load(ws.path("data/index/target.parquet")).samples}
    assert "newa_0001" in names, "dvc would take it for seen"
    assert len(runs) == (2 if times == 1 else 4)
    assert (f"files in {folder} go on changing" in caplog.text) == (times > 1)


@pytest.mark.usefixtures("no_tools")
def test_a_workspace_beside_its_images_is_no_image_that_arrives(tmp_path, said, caplog):
    said("init", tmp_path / "ws", *six_images(tmp_path).arguments)
    runner.run_stage(Workspace(tmp_path / "ws"), "prepare")
    assert "go on changing" not in caplog.text


@pytest.fixture
def nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """pseudo-label starts without the stages before it."""
    monkeypatch.setattr(pseudo_label, "disk_estimate", lambda of: 0)
    monkeypatch.setattr(runner, "check_named_files", lambda *_: None)
    monkeypatch.setattr(runner, "seconds_left", lambda *_: None)


@pytest.mark.usefixtures("nothing_checked")
@pytest.mark.parametrize("name", ["labels/raw.review.jsonl", "policies/raw.json"])
@pytest.mark.parametrize("times", [1, 99])
def test_marks_and_policies_saved_while_a_stage_ran_are_taken_or_nothing_is_recorded(ws, monkeypatch, name, times):
    atomic.write_text(ws.path(name), "0")
    seen: list[str] = []

    def run(of: Workspace) -> None:
        seen.append(of.path(name).read_text())
        if len(seen) <= times:
            atomic.write_text(of.path(name), str(len(seen)))  # somebody clicks, after it was read

    monkeypatch.setattr(pseudo_label, "run", run)
    if times == 1:
        runner.run_stage(ws, "pseudo-label")
        assert seen == ["0", "1"]
    else:
        with pytest.raises(ConfigError, match=f"{name} was changed while pseudo-label ran"):
            runner.run_stage(ws, "pseudo-label")


@pytest.mark.usefixtures("nothing_checked")
def test_somebody_who_never_stops_marking_waits_for_the_last_round(ws, monkeypatch):
    review = ReviewFile(ws.path("labels/raw"))
    seen: list[int] = []

    def run(_: Workspace) -> None:
        seen.append(len(review.marks()))
        if review.lock().is_free():
            review.add("a", "flag")

    monkeypatch.setattr(pseudo_label, "run", run)
    runner.run_stage(ws, "pseudo-label")
    assert (seen[-1], len(review.marks())) == (len(seen) - 1, len(seen) - 1), "the last round has them all"
    assert review.lock().is_free()


def _label(spec: InferSpec) -> None:
    """What an infer job leaves, without a model."""
    shutil.rmtree(spec.work / "store", ignore_errors=True)
    with LabelStoreWriter(spec.work / "store", {"teacher": "a" * 64}, 2) as writer:
        for sample in Index.load(spec.selection.index).select(names=spec.selection.names):
            writer.add(sample.name, *maps(0, (32, 48), 3), image_sha256=sample.image_sha256)


def _stored(ws: Workspace, *names: str) -> Path:
    index = ws.path("data/index/learn.parquet")
    return infer_store(ws, "auto-infer", "auto", ws.params.auto_infer, ws.path("models/teacher"), index, names)


def test_after_an_image_went_its_store_is_left_once_and_the_next_one_grows(ws, monkeypatch):
    prepare.run(ws)
    _checkpoint(ws, "teacher", "a")
    labelled = []

    def run_job(_ws: Workspace, spec: InferSpec) -> None:
        held = LabelStore.open(spec.work / "store").names() if (spec.work / "store").exists() else ()
        labelled.append(sorted(set(spec.selection.names or ()) - set(held)))
        _label(spec)

    monkeypatch.setattr(support, "run_job", run_job)
    stores = [_stored(ws, *(f"{city}_0001" for city in cities)) for cities in ("abc", "ab", "abd", "abd", "ab")]
    assert [[name[0] for name in names] for names in labelled] == [["a", "b", "c"], ["a", "b"], ["d"], ["a", "b"]]
    assert stores[0] != stores[1] == stores[2] == stores[3]


def test_a_torn_shard_is_made_again_by_the_next_run(ws, monkeypatch):
    prepare.run(ws)
    _checkpoint(ws, "teacher", "a")
    monkeypatch.setattr(support, "run_job", lambda _ws, spec: _label(spec))
    shard = next(_stored(ws, "a_0001", "b_0001").glob("*.parquet"))
    os.truncate(shard, shard.stat().st_size - 100)
    assert not LabelStore.open(_stored(ws, "a_0001", "b_0001"), strict=True).problems


def test_another_fusion_of_the_same_weights_makes_labels_of_its_own(ws, monkeypatch):
    prepare.run(ws)
    _checkpoint(ws, "teacher", "a")
    monkeypatch.setattr(support, "run_job", lambda _ws, spec: _label(spec))
    meta = ws.path("models/teacher/model.json")
    stores = []
    for kind in ("hierarchical", "average", "max", "average"):
        sealed.write(meta, {**atomic.read_json(meta), "kind": kind})
        stores.append(_stored(ws, "a_0001"))
    assert len(set(stores)) == 3
    assert stores[1] == stores[3]


def test_a_mistake_in_params_is_reported_before_anything_is_touched(ws):
    with pytest.raises(ConfigError, match=r"epochs: expected an integer, found 'none'"):
        runner.run_stage(edited(ws, {"teacher_pretrain.epochs": "none"}), "prepare")
    assert not ws.path("data/index").exists()


def test_a_policy_that_is_not_there_is_reported_with_the_key_that_names_it(ws, tmp_path):
    write_store(tmp_path / "raw", 1)
    raw = LabelStore.open(tmp_path / "raw")
    with pytest.raises(
        ConfigError, match=r"pseudo_label\.threshold is policy: .*calibration/policy\.json is not there"
    ):
        chosen_policy(ws, raw)
    ws = edited(ws, {"pseudo_label.threshold": "policies/none.json"})
    with pytest.raises(ConfigError, match=r"threshold is policies/none\.json: .*none\.json is not there") as caught:
        chosen_policy(ws, raw)
    assert "params.yaml" in caught.value.hint
    images = {"data.target": {"kind": "plain", "root": str(tmp_path), "labels": ""}}
    with pytest.raises(ConfigError) as caught:
        chosen_policy(edited(ws, images | {"pseudo_label.threshold": "policy"}), raw)
    assert "set it to a number" in caught.value.hint, "calibrate has nothing to measure on"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_stage_without_jobs_with_143_and_it_can_go_on(ws, sig):
    # A stage that takes its time: the loop is ours, so the signal has to break into it.
    code = (
        "import sys, time; import pipeline.stages.prepare as p; "
        "p.run = lambda ws: (sys.stderr.write('running\\n'), sys.stderr.flush(), [time.sleep(0.1) for _ in range(600)]); "
        "from pipeline.cli.main import main; sys.exit(main(['stage', 'prepare', '--workspace', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code, str(ws.root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPO, env=os.environ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        start = time.monotonic()
        process.send_signal(sig)
        said = process.stderr.read()
        assert process.wait(timeout=10) == 143
    assert time.monotonic() - start < 5
    assert said.startswith("error: stopped by a signal")
    assert ws.lock("prepare").is_free()
