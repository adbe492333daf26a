"""Each rule of a recipe, and that no recipe asks for what the machine cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.plan import _lines
from pipeline.plan.recipe import RULES, Choice, Facts, Machine, recipe, recipe_of_student
from pipeline.workspace.params import Params
from pipeline.workspace.yaml_text import load_editable

CPU = Machine(cores=2, memory=16.0)
GPU = Machine(cores=16, memory=128.0, gpus=4, gpu_memory=80.0)
CAMVID = Facts(CPU, learn=60, size=(360, 480), calibrate_blocks=12, rarest=0.002, step=30)


def chosen(facts: Facts) -> dict[str, Any]:
    return {choice.key: choice.value for choice in recipe(facts)}


def test_camvids_facts_give_the_profile_that_was_measured_there() -> None:
    ours, profile = chosen(CAMVID), Params.of_profile("camvid")
    teacher, student = profile.teacher_train, profile.student_train
    assert ours["train.model.trunk"] == teacher.model.trunk
    assert ours["teacher_train.model.trunk_weights"] == teacher.model.trunk_weights
    assert ours["train.crop"] == list(teacher.crop)
    assert ours["train.sampling.tile"] == teacher.sampling.tile
    assert ours["train.global_batch"] == teacher.global_batch
    assert ours["train.batch_per_rank"] == teacher.batch_per_rank
    assert ours["teacher_train.epochs"] == teacher.epochs
    assert ours["student_train.epochs"] == student.epochs
    assert ours["student_train.pseudo.fine_only_epochs"] == student.pseudo.fine_only_epochs
    assert ours["train.optimiser.lr"] == teacher.optimiser.lr
    assert ours["train.loss.per_scale_weight"] == teacher.loss.per_scale_weight
    assert ours["auto_infer.scales"] == list(profile.auto_infer.scales)
    assert ours["pseudo_label.threshold"] == profile.pseudo_label.threshold
    assert ours["calibrate.min_blocks"] == profile.calibrate.min_blocks
    assert ours["evaluate.max_gap"] == profile.evaluate.max_gap


@pytest.mark.parametrize(
    ("key", "change", "value"),
    [
        ("runtime.ranks", {}, 2),
        ("runtime.ranks", {"machine": replace(CPU, memory=4.0)}, 1),
        ("runtime.ranks", {"machine": GPU}, 4),
        ("train.model.trunk", {"machine": replace(CPU, has_weights=False)}, "hrnet_micro"),
        ("teacher_train.model.trunk_weights", {"machine": replace(CPU, has_weights=False)}, "none"),
        ("train.optimiser.trunk_factor", {"machine": replace(CPU, has_weights=False)}, 1.0),
        ("teacher_train.epochs", {"machine": replace(CPU, has_weights=False)}, 360),
        ("teacher_train.epochs", {"learn": 400}, 60),
        ("teacher_train.epochs", {"learn": 100_000}, 12),
        ("teacher_train.epoch_samples", {"learn": 4}, 16),
        ("teacher_train.epoch_samples", {}, None),
        ("student_train.epoch_samples", {"learn": 4}, 32),
        ("train.crop", {"size": (64, 96)}, [64, 96]),
        ("train.crop", {"size": (1024, 2048)}, [160, 352]),
        ("train.crop", {"size": (1024, 2048), "machine": GPU}, [1024, 2048]),
        ("train.crop", {"size": (20, 20)}, [32, 32]),
        ("teacher_train.model.train_scales", {}, None),
        ("teacher_train.model.train_scales", {"machine": GPU}, [0.5, 1.0, 2.0]),
        ("teacher_train.model.train_scales", {"size": (1024, 2048), "machine": GPU}, None),
        ("train.batch_per_rank", {"machine": GPU}, 2),
        ("train.global_batch", {"machine": replace(GPU, gpus=3)}, 12),
        ("train.sampling.class_uniform", {"rarest": 0.2}, 0.25),
        ("calibrate.min_blocks", {"calibrate_blocks": 30}, 20),
        ("calibrate.min_blocks", {"calibrate_blocks": 1}, 3),
        ("calibrate.region", {"has_coarse": True}, "outside_coarse"),
        ("pseudo_label.threshold", {"calibrate_blocks": 20}, "policy"),
        ("pseudo_label.threshold", {"calibrate_blocks": 2}, 0.9),
        ("auto_infer.scales", {"size": (1080, 1920)}, [0.5, 1.0]),
        ("auto_infer.scales", {"size": (1080, 1920), "machine": GPU}, [0.5, 1.0, 2.0]),
        ("auto_infer.flip", {"size": (1080, 1920)}, False),
        ("student_train.pseudo.human_weight", {}, 100.0),
        ("student_train.pseudo.human_weight", {"merges": True}, 1.0),
        ("evaluate.max_gap", {"step": 0}, 0),
    ],
)
def test_each_rule(key: str, change: dict[str, Any], value: object) -> None:
    assert chosen(replace(CAMVID, **change))[key] == value


def test_a_student_of_other_networks_trains_four_times_as_long_where_a_gpu_makes_that_cheap() -> None:
    length, share = {}, {}
    for machine in (CPU, GPU):
        choices = {one.key: one for one in recipe_of_student(replace(CAMVID, machine=machine), ["onnx:a.onnx"])}
        length[machine], share[machine] = choices["student_train.epochs"], choices["student_train.pseudo.share"].value
        assert choices["student_train.pseudo.human_weight"].value == 20.0, "more drowns labels that are right"
    assert (length[CPU].value, length[GPU].value) == (120, 480)
    assert "480 gain more" in length[CPU].why
    assert share == {CPU: 0.75, GPU: 0.5}, "of auto-labelled crops: as measured at these lengths"


MACHINES = st.builds(
    Machine, st.integers(1, 64), st.floats(1, 512), st.integers(0, 8), st.floats(4, 141), st.booleans()
)
FACTS = st.builds(
    Facts,
    MACHINES,
    st.integers(1, 10**6),
    st.tuples(st.integers(8, 6000), st.integers(8, 8000)),
    st.integers(0, 500),
    st.floats(0, 0.5),
    st.integers(0, 1000),
    st.booleans(),
)


@given(FACTS)
def test_every_recipe_is_a_valid_params_file_whose_first_step_is_full(facts: Facts) -> None:
    data = Choice("data.target.root", ".")
    choices = [Choice("profile", "own"), data, *recipe(facts)]
    document = load_editable("\n".join(_lines(choices)) + "\n")
    flat = {choice.key: choice.value for choice in choices}
    for key, value in flat.items():
        here = document
        for part in key.split("."):
            here = here[part]
        assert here == value
    crops = (flat["teacher_train.epoch_samples"] or facts.learn) * flat["teacher_train.epochs"]
    assert crops >= flat["train.global_batch"]
    assert flat["train.global_batch"] % (flat["runtime.ranks"] * flat["train.batch_per_rank"]) == 0
    height, width = flat["train.crop"]
    assert height <= max(32, facts.size[0])
    assert width <= max(32, facts.size[1])
    if not facts.machine.gpus:
        assert height * width <= 192 * 288 * 1.3
        assert flat["runtime.ranks"] <= facts.machine.cores


def test_every_choice_has_a_reason_or_follows_from_one_that_has() -> None:
    without = [choice.key for choice in recipe(CAMVID) if not choice.why]
    assert len(without) < len(RULES) / 3
