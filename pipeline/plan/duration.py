"""How long the chain of a plan will take here: its work, and the speed of one training step and one image."""

from __future__ import annotations

from pathlib import Path

from hmsa_core.data.decode import read_image
from hmsa_core.taxonomy import plain
from hmsa_core.training.speed import seconds_a_crop, seconds_a_megapixel, seconds_an_image
from pipeline.plan.plan import Plan
from pipeline.workspace.params import Params, stages_of_chain
from pipeline.workspace.work import megapixels, of_crop
from pipeline.workspace.yaml_text import parse_yaml

_START = 8.0  # seconds in which the processes of a stage start


def expected_seconds(plan: Plan) -> float:
    """Seconds of `dvc repro` on this machine; measures for some seconds.

    Raises:
        HmsaError: another network that labels cannot be opened, or does not fit the images.
    """
    params = Params.parse(parse_yaml(plan.params_text().encode(), Path("params.yaml")))
    counts = {role: len(plan.roles.images(role, labelled=True)) for role in ("learn", "calibrate", "report")}
    counts["unlabelled"] = len(plan.roles.images("unlabelled"))
    sizes = {role: [plan.values.size] * count for role, count in counts.items()}
    work = megapixels(params, {"pretrain": [], **sizes})
    seconds = _START * len(stages_of_chain(params.data))
    labelling = work.pop("calibrate") + work.pop("auto-infer")
    if params.auto_infer.teacher is not None:
        seconds += (counts["calibrate"] + counts["unlabelled"]) * _seconds_of_teacher(plan, params)
        labelling = 0.0
    if not counts["learn"]:
        return seconds
    config = params.student_train if params.teacher_train.skip else params.teacher_train
    training = work["teacher-train"] + work["student-train"]
    seconds += training * seconds_a_crop(config) / of_crop(config)
    return seconds + (labelling + work["evaluate"]) * seconds_a_megapixel(config.model, params.auto_infer.runtime)


def _seconds_of_teacher(plan: Plan, params: Params) -> float:
    if plan.adoption is not None:
        return plan.adoption.rows[-1].seconds
    first = next(iter(plan.roles.images("unlabelled") or plan.roles.images("calibrate")))
    image = read_image(plan.reading.root / first.image)
    classes = plain(list(plan.classes.names.values()))
    return seconds_an_image(params.auto_infer.teacher or (), params.auto_infer, classes, first.name, image)
