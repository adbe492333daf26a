"""What people edit while weights stay: class file, coarse labels, blocks, the teacher; labels and scores follow."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core import models
from hmsa_core.data.index import Index
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore, ThresholdPolicy
from hmsa_core.labels.review import ReviewFile
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.lineage import learned
from hmsa_core.spec import InferSpec
from pipeline.cli.main import main
from pipeline.jobs import support
from pipeline.report import sections
from pipeline.stages import auto_infer, calibrate, prepare, pseudo_label, student_train
from pipeline.workspace.counts import read_judged
from pipeline.workspace.workspace import Workspace
from tests.support.inference import CPU, run_job_here, small_model
from tests.support.photographs import edited, photograph, photographs, work_over

pytestmark = pytest.mark.long


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photographs of eight cities, two of them without labels."""
    return photographs(tmp_path / "mine", "abcdef", "gh", "new", 5)


@pytest.fixture
def ws(tmp_path: Path, data: Path, no_tools: None, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace over them with a teacher, whose jobs run in this process."""
    changes = {"data.target.block": "image", "pseudo_label.threshold": 0.5}
    made = work_over(tmp_path / "ws", data, "new", calibrate="cde", report="f", changes=changes)
    monkeypatch.setattr(support, "run_job", run_job_here)
    _prepare(made)
    return made


def _prepare(ws: Workspace) -> None:
    """Index the data and train a teacher of their classes; its weights are the same every time."""
    prepare.run(ws)
    table = Index.load(support.role_index(ws, "learn")).classes
    models.save(small_model("single", 3), ws.path("models/teacher"), class_table=table.to_json(), lineage={})


def _label(ws: Workspace) -> None:
    for stage in (calibrate, auto_infer, pseudo_label):
        stage.run(ws)


def _edit(data: Path, old: str, new: str) -> None:
    path = data / "classes.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def _score(ws: Workspace) -> Path:
    model, index = ws.path("models/teacher"), support.role_index(ws, "report")
    settings = ws.params.evaluate.settings[:1]
    return support.evaluate_model(ws, "evaluate", "teacher", model, index, ("f_0001",), settings, CPU)


def _check(ws: Workspace) -> None:
    wanted = Index.load(support.role_index(ws, "learn")).classes
    student_train._check_classes(ws, ws.path("labels/final"), ws.teacher(), wanted)


@pytest.mark.parametrize(
    ("old", "new", "name", "colour"),
    [('"car"', '"auto"', "auto", (1, 1, 1)), ("[1, 1, 1]", "[1, 1, 143]", "car", (1, 1, 143))],
)
def test_an_edited_name_or_colour_goes_through_all_stages(ws, data, old, new, name, colour):
    _label(ws)
    _score(ws)
    weights = support.weights_of(ws.path("models/teacher"))
    _edit(data, old, new)
    _prepare(ws)
    assert support.weights_of(ws.path("models/teacher")) == weights
    _label(ws)
    tables = [LabelStore.open(ws.path(store), strict=True).classes for store in ("labels/raw", "labels/final")]
    tables.append(ThresholdPolicy.load(ws.path("calibration/policy.json")).classes)
    assert [(table.classes[1], table.colours[1]) for table in tables] == [(name, colour)] * 3
    assert read_json(_score(ws) / "summary.json")["classes"] == ["road", name, "sky"]
    _check(ws)


def test_an_edit_between_a_kill_and_the_next_run_and_back_again(ws, data, monkeypatch):
    def killed(of: Workspace, spec: InferSpec) -> None:
        run_job_here(of, spec)
        (spec.work / "store" / "manifest.json").unlink()

    monkeypatch.setattr(support, "run_job", killed)
    with pytest.raises(Exception, match="manifest"):
        auto_infer.run(ws)
    monkeypatch.setattr(support, "run_job", run_job_here)
    _edit(data, '"car"', '"auto"')
    _prepare(ws)
    auto_infer.run(ws)
    assert LabelStore.open(ws.path("labels/raw")).classes.classes == ("road", "auto", "sky")
    _edit(data, '"auto"', '"car"')
    _prepare(ws)
    auto_infer.run(ws)
    assert LabelStore.open(ws.path("labels/raw")).classes.classes == ("road", "car", "sky")


def test_labels_of_other_classes_are_refused_with_the_way_out(ws, data):
    _label(ws)
    _check(ws)
    stuck = shutil.copytree(ws.path("models/teacher"), ws.path("models/old"))
    _edit(data, '"car"', '"auto"')
    _prepare(ws)
    words = r"labels/final: its classes are not those .* \(class 1 is car .* there, auto .* here\)"
    with pytest.raises(ConfigError, match=words) as error:
        student_train.run(ws)
    assert "dvc repro --force --single-item calibrate auto-infer" in error.value.hint
    shutil.rmtree(ws.path("models/teacher"))
    shutil.copytree(stuck, ws.path("models/teacher"))
    with pytest.raises(ConfigError, match=words) as error:
        student_train.run(ws)
    assert "the teacher is older than the last edit" in error.value.hint
    _promote(ws)
    with pytest.raises(ConfigError, match=words) as error:
        student_train.run(ws)
    assert "autolabel models rollback" in error.value.hint


def _promote(ws: Workspace) -> None:
    """Let a copy of the teacher teach as a registered version."""
    shutil.copytree(ws.path("models/teacher"), ws.path("models/registry/v1"))
    write_json(ws.path("models/current.json"), {"teacher": "models/registry/v1"})


def test_a_camera_mask_of_another_size_than_the_images_is_refused(ws, tmp_path):
    _label(ws)
    mask = tmp_path / "mask.png"
    ws = edited(ws, {"pseudo_label.merge.mask": str(mask)})
    Image.new("L", (24, 16), 255).save(mask)
    with pytest.raises(ConfigError, match=r"merge\.mask: .*mask\.png is 24x16, the images are 48x32"):
        pseudo_label.run(ws)
    Image.new("L", (48, 32), 255).save(mask)
    pseudo_label.run(Workspace(ws.root))


def test_a_target_that_no_confidence_reaches_is_reported(ws, data, caplog):
    for path in (data / "labels" / "train").iterdir():  # large regions: what is wrong is no outline
        Image.fromarray((np.arange(32 * 48).reshape(32, 48) % 48 // 16).astype(np.uint8)).save(path)
    prepare.run(ws)
    calibrate.run(ws)  # a teacher that was never trained
    assert "calibrate.target is 51.0 %, but all classes together are right at most" in caplog.text
    policy = ThresholdPolicy.load(ws.path("calibration/policy.json"))
    assert policy.evidence["ceiling"] < policy.evidence["target"] == 0.51
    assert read_json(ws.path("metrics/calibrate.json"))["target"] == 0.51
    assert "whatever the confidence" in sections._chosen(policy, 0.51)
    caplog.clear()
    calibrate.run(edited(ws, {"calibrate.rule": "teach", "calibrate.tau": 0.3}))
    assert "calibrate.target is" not in caplog.text, "tau is no target that was missed"
    message = sections._chosen(ThresholdPolicy.load(ws.path("calibration/policy.json")), 0.3)
    assert "the rule teach" in message
    assert "lower bound" not in message


@pytest.mark.parametrize("edit", ["added", "removed"])
def test_no_stage_labels_or_measures_with_a_teacher_of_other_classes(ws, data, edit):
    _label(ws)
    _promote(ws)
    rows = json.loads((data / "classes.json").read_text())
    new = {"id": 3, "name": "tram", "colour": [3, 3, 3]}
    rows["classes"] = (
        [*rows["classes"], new] if edit == "added" else [rows["classes"][0], rows["classes"][2] | {"id": 1}]
    )
    (data / "classes.json").write_text(json.dumps(rows))
    for path in (data / "labels" / "train").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray((label + (label == 2) if edit == "added" else label // 2).astype(np.uint8)).save(path)
    prepare.run(ws)
    knows = "knows the classes road, car, sky; the fine labels have road, "
    for stage, what in ((calibrate, "registry/v1"), (auto_infer, "registry/v1"), (pseudo_label, "labels/raw")):
        with pytest.raises(ConfigError, match=f"{what}: {knows}") as error:
            stage.run(ws)
        assert "autolabel models rollback" in error.value.hint
    write_json(ws.path("models/current.json"), {"teacher": "stage:teacher-train"})
    with pytest.raises(ConfigError, match=knows) as error:
        calibrate.run(ws)
    assert "`dvc repro` trains it anew" in error.value.hint


@pytest.mark.parametrize(("threshold", "warned"), [(0.5, False), (0.99, True)])
def test_the_student_is_told_that_its_labels_are_all_but_empty(ws, caplog, monkeypatch, threshold, warned):
    ws = edited(ws, {"pseudo_label.threshold": threshold})
    _label(ws)
    monkeypatch.setattr(student_train, "train_model", lambda *_args, **_options: pytest.fail("training begins"))
    with pytest.raises(pytest.fail.Exception, match="training begins"):
        student_train.run(ws)
    message = [line for line in caplog.messages if line.startswith("labels/final: 0.0 % of the pixels are labelled")]
    assert len(message) == warned
    assert all(
        "at threshold 0.99: 50 % of each epoch teaches (almost) nothing; lower pseudo" in line for line in message
    )


@pytest.mark.parametrize(("init", "start"), [("teacher", "teacher"), ("pretrained", None), ("models/other", "other")])
def test_student_and_control_start_where_params_say(ws, monkeypatch, init, start):
    ws = edited(ws, {"student_train.init": init})
    models.save(small_model("single", 3, seed=8), ws.path("models/other"), class_table=None, lineage={})
    _label(ws)
    begun: dict[str, dict[str, object]] = {}

    def train(_ws: Workspace, _stage: str, job: str, *_: object, **options: object) -> Path:
        begun[job] = options
        if job == "control":
            pytest.fail("both are known")
        return ws.root

    monkeypatch.setattr(student_train, "train_model", train)
    with pytest.raises(pytest.fail.Exception, match="both are known"):
        student_train.run(ws)
    wanted = None if start is None else ws.path(f"models/{start}")
    assert [begun[job]["init_from"] for job in ("student", "control")] == [wanted, wanted]
    assert begun["student"]["teacher"] == (str(ws.teacher()),)  # its images count as seen, wherever the student starts


def _draw(data: Path, name: str, class_id: int) -> None:
    path = data / "coarse" / "new" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 48), class_id, np.uint8)).save(path)


def _final(ws: Workspace, name: str) -> tuple[set[int], str]:
    """Classes of an image's final label, and where its human label is said to be."""
    calibrate.run(ws)
    auto_infer.run(ws)
    pseudo_label.run(ws)
    with LabelStore.open(ws.path("labels/final"), strict=True) as store:
        return {int(v) for v in np.unique(store.read(name)[0])} - {255}, store.row(name)["coarse_path"]


def test_coarse_labels_that_come_change_or_go_after_the_image_was_labelled_are_merged_as_they_are_now(
    ws, data, monkeypatch, caplog
):
    changes = {"data.target.coarse": "coarse", "pseudo_label.merge.default": "human", "pseudo_label.threshold": 0.99999}
    ws = edited(ws, changes)
    _draw(data, "h_0001", 0)
    prepare.run(ws)
    assert _final(ws, "g_0001") == (set(), "")  # nothing passes this threshold, and nobody drew anything
    monkeypatch.setattr(
        support, "run_job", lambda _ws, spec: pytest.fail(f"nothing has to be labelled again: {spec.kind}")
    )
    for class_id in (1, 2):
        _draw(data, "g_0001", class_id)
        prepare.run(ws)
        caplog.clear()
        assert _final(ws, "g_0001") == ({class_id}, "coarse/new/g_0001.png")
        assert "1 image has other human coarse labels than when it was labelled" in caplog.text
    shutil.move(data / "coarse", data / "drawn")
    ws = edited(ws, {"data.target.coarse": "drawn"})
    prepare.run(ws)
    assert _final(ws, "g_0001") == ({2}, "drawn/new/g_0001.png")
    shutil.move(data / "drawn", data / "coarse")
    ws = edited(ws, {"data.target.coarse": "coarse"})
    (data / "coarse/new/g_0001.png").unlink()
    prepare.run(ws)
    assert _final(ws, "g_0001") == (set(), "")


def test_what_a_person_corrects_in_another_tool_is_what_the_student_learns(ws, tmp_path):
    _label(ws)
    raw, out = ws.path("labels/raw"), tmp_path / "task"
    assert main(["export", str(raw), str(out), "--format", "fiftyone", "--queue", "1", "--threshold", "0.5"]) == 0
    (path,) = (out / "labels").iterdir()
    ids = np.array(Image.open(path))
    ids[3:9, 5:20] = 3  # sky; masks hold trainIds + 1
    Image.fromarray(ids).save(path)
    assert main(["import", str(out), str(raw), "--corrections-of", str(out), "--by", "kim"]) == 0
    for _ in range(2):
        pseudo_label.run(ws)
        label, code = LabelStore.open(ws.path("labels/final")).read(path.stem)
        source = LabelStore.open(ws.path("labels/final")).read_source(path.stem)
        assert (label[3:9, 5:20] == 2).all()
        assert SOURCES["human"] in source[3:9, 5:20]
        assert not code[source == SOURCES["human"]].any()
        auto_infer.run(ws)  # labelled anew: what people said stays


def test_flags_do_not_pass_on_to_another_picture_of_the_same_name(ws, data, caplog):
    _label(ws)
    with LabelStore.open(ws.path("labels/raw"), strict=True) as raw:
        pictures = {row["name"]: row["image_sha256"] for row in raw.rows()}
    for name in pictures:
        ReviewFile(ws.path("labels/raw"), pictures).add(name, "flag")
    pseudo_label.run(ws)
    assert LabelStore.open(ws.path("labels/final")).names() == []
    photograph(data, "g", "new", np.random.default_rng(0))
    prepare.run(ws)
    _label(ws)
    assert LabelStore.open(ws.path("labels/final")).names() == ["g_0001"]
    assert "marks of 1 images, first g_0001, are of other pictures than those of now" in caplog.text


def test_scores_go_by_the_blocks_of_now(ws):
    first = _score(ws)
    assert _score(ws) == first
    index = support.role_index(ws, "report")
    listed = Index.load(index)
    moved = [replace(sample, block="all of it") for sample in listed.samples]
    Index.write(index, moved, listed.classes, listed.root)
    second = _score(ws)
    assert (first != second, read_judged(second / "multi.npz", "teacher").blocks) == (True, ("all of it",))


def test_images_that_taught_the_teacher_by_earlier_labels_are_counted(ws, caplog):
    samples = Index.load(support.role_index(ws, "unlabelled")).samples
    assert auto_infer.self_taught(ws, samples) == 0, "its teacher knows fine labels alone"
    teacher = ws.path("models/teacher")
    taught = learned(samples[:1], root="target", source="pseudo")
    summary = taught.summary(taught.save(teacher / "lineage.json"))
    table = read_json(teacher / "model.json")["class_table"]
    models.save(small_model("single", 3), teacher, class_table=table, lineage=summary)
    auto_infer.run(ws)
    assert read_json(ws.path("metrics/auto-infer.json"))["self_taught"] == 1
    assert f"learned from 1 of these {len(samples)} images by labels of an earlier teacher" in caplog.text


def test_labels_of_another_teacher_start_no_student(ws):
    _label(ws)
    student_train.check_teacher(ws.path("labels/final"), ws.teacher())
    other = ws.path("models/other")
    models.save(small_model("single", 3, seed=8), other, class_table=None, lineage={})
    with pytest.raises(
        ConfigError, match=r"labels/final: labelled by [0-9a-f]{16}, but the teacher is now .*models/other"
    ) as error:
        student_train.check_teacher(ws.path("labels/final"), other)
    assert error.value.hint == "`dvc repro` labels again with this teacher"
