"""Keys of work folders: what changes a result changes the key, what only changes speed does not; old ones go."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.config import InferConfig, TrainConfig, key_material
from hmsa_core.io.atomic import read_json
from hmsa_core.result_keys import infer_material
from pipeline.workspace.keys import open_work, work_key
from pipeline.workspace.params import Params
from tests.conftest import REPO
from tests.support.checkpoints import checkpoint
from tests.support.training import class_table


def _train(**changes: object) -> str:
    runtime = {"ranks": 1, "threads": 1, **changes.pop("runtime", {})}  # type: ignore[dict-item]
    return work_key(key_material(TrainConfig.model_validate({"global_batch": 32, "runtime": runtime, **changes})))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"epochs": 3},
        {"crop": [64, 64]},
        {"batch_per_rank": 2},
        {"optimiser": {"lr": 0.1}},
        {"pseudo": {"share": 0.4}},
        {"model": {"train_scales": [0.5, 1.0, 2.0]}},
        {"runtime": {"threads": 2}},
        {"runtime": {"precision": "fp32"}},
    ],
)
def test_what_changes_the_weights_changes_the_key(change: dict[str, object]) -> None:
    assert _train(**change) != _train()


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": {"ranks": 4}},
        {"runtime": {"nodes": 2}},
        {"runtime": {"workers": 8}},
        {"checkpoint_every": 7},
        {"keep_checkpoints": 5},
    ],
)
def test_a_run_goes_on_with_another_number_of_gpus(change: dict[str, object]) -> None:
    assert _train(**change) == _train()


def test_the_student_is_the_same_with_and_without_a_control_and_from_wherever_its_start_lies() -> None:
    params = Params.load(REPO / "params.yaml")
    student, pretrain = params.student_train, params.teacher_pretrain
    assert key_material(student.model_copy(update={"control": False})) == key_material(student)
    assert key_material(pretrain.model_copy(update={"init_from": "models/imported"})) == key_material(pretrain)
    assert key_material(student.model_copy(update={"epochs": 3})) != key_material(student)


def test_scales_flip_codec_precision_and_fusion_make_other_labels_and_the_order_of_scales_does_not(
    tmp_path: Path,
) -> None:
    teacher = checkpoint(tmp_path / "teacher")

    def key(kind: str = "hierarchical", precision: str = "fp32", **changes: object) -> str:
        config = InferConfig.model_validate(changes)
        return work_key(infer_material(config, teacher, class_table(), kind=kind, precision=precision))

    assert len({key(), key(scales=[0.5, 1.0]), key(flip=False), key(codec="webp"), key("average"), key("max")}) == 6
    assert key(precision="bf16") != key()
    assert key(scales=[2.0, 1.0, 0.5], runtime={"workers": 4, "ranks": 8}) == key("single") == key()


def test_the_last_two_keys_of_each_job_stay_in_order_of_use_not_of_time(tmp_path: Path) -> None:
    first, second = (open_work(tmp_path, "student", {"seed": s}) for s in (1, 2))
    assert read_json(first / "key.json") == {"job": "student", "seed": 1}, "it says what its key was made of"
    (first / "progress").write_text("half")
    other = open_work(tmp_path, "control", {"seed": 1})
    assert open_work(tmp_path, "student", {"seed": 1}) == first  # used again: the second one is now the older
    third = open_work(tmp_path, "student", {"seed": 3})
    assert (first / "progress").read_text() == "half"
    assert third.exists()
    assert other.exists(), "jobs of one stage do not push each other out"
    assert not second.exists()
