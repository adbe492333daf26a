"""The tables of ablations: which rows they have, and the recipe of each."""

from __future__ import annotations

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.workspace.params import Params
from research.ablation.catalogue import NAMES, make_ablation
from research.ablation.plan import Labels, Training
from research.ablation.recipe import Scale, recipe_digest, train_config


@pytest.fixture(scope="module")
def demo() -> Params:
    return Params.of_profile("demo")


@pytest.fixture(scope="module")
def camvid() -> Params:
    return Params.of_profile("camvid")


def test_reasons_repeats_rows_of_other_tables_with_one_thing_changed(demo: Params) -> None:
    usual = {r.name: r for name in ("scales", "labels") for r in make_ablation(name, demo).rows}
    changes = {
        "": (),
        "narrow-": (("augment.scale_max", 1.0),),
        "own-": (("loss.per_scale_weight", 0.4),),
        "two-": (("model.train_scales", (0.5, 1.0)),),
        "three-": (("model.train_scales", (0.5, 1.0, 2.0)),),
    }
    for row in make_ablation("reasons", demo).rows:
        prefix = next(p for p in sorted(changes, reverse=True) if row.name.startswith(p))
        twin = usual["both" if row.name == "all-classes" else row.name.removeprefix(prefix)]
        assert row.training.changes == (*twin.training.changes, *changes[prefix])
        assert row.training.labels == (Labels(0.0) if row.name == "all-classes" else twin.training.labels)
        assert (row.setting.scales, row.setting.mode) == (twin.setting.scales, twin.setting.mode)


def test_every_row_gives_a_valid_recipe_of_the_same_number_of_crops(demo: Params, camvid: Params) -> None:
    for params, names in ((demo, NAMES[:-1]), (camvid, NAMES)):
        for name in names:
            table = make_ablation(name, params)
            rows = [r for r in table.rows if r.training and not r.name.startswith("longer-")]
            configs = [(r, train_config(params, r.training, 1, Scale())) for r in rows]
            for recipe in ("teacher_train", "student_train"):
                seen = {(c.epochs, c.epoch_samples, c.global_batch) for r, c in configs if r.training.recipe == recipe}
                assert len(seen) <= 1, (name, recipe)


def with_tail(params: Params, epochs: int) -> Params:
    pseudo = params.student_train.pseudo.model_copy(update={"fine_only_epochs": epochs})
    return params.model_copy(update={"student_train": params.student_train.model_copy(update={"pseudo": pseudo})})


def test_a_shorter_training_keeps_the_proportion_of_its_end_on_fine_labels(camvid: Params) -> None:
    params = with_tail(camvid, camvid.student_train.epochs // 3)
    whole = train_config(params, Training("student_train", "teacher", labels=Labels()), 0, Scale())
    half = train_config(params, Training("student_train", "teacher", labels=Labels()), 0, Scale(0.5))
    assert half.epochs == round(whole.epochs / 2)
    assert half.pseudo.fine_only_epochs == pytest.approx(whole.pseudo.fine_only_epochs / 2, abs=1)
    assert train_config(params, Training("student_train", "teacher"), 0, Scale()).pseudo.fine_only_epochs == 0


def test_a_change_of_a_setting_that_is_not_there_is_named(demo: Params) -> None:
    for dotted in ("model.train_scalez", "epochz"):
        with pytest.raises(ConfigError, match=rf"^student_train: unknown key '{dotted}'"):
            train_config(demo, Training("student_train", "teacher", ((dotted, 1),)), 0, Scale())


def test_each_profile_variant_and_teacher_has_a_table_of_its_own(demo: Params, camvid: Params) -> None:
    longer = camvid.model_copy(update={"teacher_train": camvid.teacher_train.model_copy(update={"epochs": 1280})})
    adopted = camvid.model_copy(update={"teacher_train": camvid.teacher_train.model_copy(update={"skip": True})})
    assert make_ablation("camvid-table", camvid).name == "camvid-table-default"
    assert [make_ablation("scales", p).name for p in (demo, camvid, longer, adopted)] == [
        "scales",
        "scales-camvid",
        "scales-camvid-1280",
        "scales-camvid-adopted",
    ]
    with pytest.raises(ConfigError, match="profile camvid, this one has profile demo"):
        make_ablation("camvid-table", demo)


def test_the_recipe_that_a_freeze_holds_still_knows_settings_and_not_machines(demo: Params) -> None:
    def digest(section: str, table: str = "labels", **changes: object) -> str:
        params = demo.model_copy(update={section: getattr(demo, section).model_copy(update=changes)})
        return recipe_digest(params, make_ablation(table, params), Scale())

    usual = digest("teacher_train")
    runtime = demo.teacher_train.runtime.model_copy(update={"ranks": 1, "workers": 9})
    assert digest("teacher_train", runtime=runtime) == usual
    others = [
        digest("teacher_train", epochs=9),
        digest("calibrate", target=0.97),
        digest("auto_infer", flip=not demo.auto_infer.flip),
    ]
    assert usual not in others
    assert digest("student_train", "merging", init="pretrained") != digest("student_train", "merging")
    assert recipe_digest(demo, make_ablation("labels", demo), Scale(0.5)) != usual
