"""Keys: what changes a cell's key and what does not; the tables as the issue asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.params import Params
from research.ablation import code
from research.ablation.catalogue import NAMES, make_ablation
from research.ablation.code import changed_files, source_digests, stripped
from research.ablation.material import Scale, cell_material, train_config
from research.ablation.plan import Ablation, Comparison, Labels, Training


@pytest.fixture(scope="module")
def demo() -> Params:
    return Params.of_profile("demo")


@pytest.fixture(scope="module")
def camvid() -> Params:
    return Params.of_profile("camvid")


def changed(params: Params, dotted: str, value: object) -> Params:
    section, *keys = dotted.split(".")
    part = getattr(params, section)
    values = part.model_dump()
    here = values
    for key in keys[:-1]:
        here = here[key]
    here[keys[-1]] = value
    return params.model_copy(update={section: type(part).model_validate(values)})


def key(params: Params, table: str, row: str, seed: int = 0, scale: Scale | None = None) -> str:
    ablation = make_ablation(table, params)
    return cell_material(params, ablation.pick([row])[0], seed, scale or Scale()).key


# ------------------------------------------------------------------------------------------------ tables


def test_scales_compares_all_fusions_on_the_three_sets_from_three_trainings(demo: Params) -> None:
    table = make_ablation("scales", demo)
    assert {r.training for r in table.rows} == {
        Training("teacher_train", "pretrain", (("model.kind", k),)) for k in ("single", "hierarchical", "explicit")
    }
    sets = {(r.setting.mode, r.training.changes[0][1], r.setting.scales) for r in table.rows}
    for scales in ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0)):
        for mode, kind in (("average", "single"), ("max", "single"), ("model", "hierarchical"), ("model", "explicit")):
            assert (mode, kind, scales) in sets


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


def test_labels_has_the_two_by_two_and_the_three_kinds_of_labels(demo: Params) -> None:
    rows = {r.name: r for r in make_ablation("labels", demo).rows}
    assert [rows[n].training.changes[0][1] for n in ("baseline", "attention", "auto", "both")] == [
        "single",
        "hierarchical",
        "single",
        "hierarchical",
    ]
    assert [rows[n].training.labels is not None for n in ("baseline", "attention", "auto", "both")] == [0, 0, 1, 1]
    assert rows["coarse"].training.labels == Labels("none", coarse=True)
    assert rows["both-coarse"].training.labels == Labels("policy", coarse=True)
    assert rows["baseline"].setting.mode == "average"


def test_threshold_and_losses_have_the_rows_that_are_asked_for(demo: Params) -> None:
    names = [r.name for r in make_ablation("threshold", demo).rows]
    assert names == ["control", "t0", "t0.5", "t0.7", "t0.8", "t0.9", "t0.95", "t0.98", "policy"]
    losses = {r.name: dict(r.training.changes) for r in make_ablation("losses", demo).rows}
    assert losses["rmi-masked-60"] == {"loss.main": "rmi", "loss.rmi_ignore": "masked"}
    assert {n.rsplit("-", 1)[1] for n in losses if n[:3] in ("rmi", "bce", "cro")} == {"10", "30", "60", "merged"}
    assert losses["mix-classmix"]["pseudo.mix"] == "classmix"
    assert losses["mix-classmix-merged"] == {**losses["rmi-masked-60"], "pseudo.mix": "classmix"}
    assert losses["colour-100-merged"] == {**losses["rmi-masked-60"], "pseudo.colour": 1.0}
    assert losses["tail-merged"] == {**losses["rmi-masked-60"], "pseudo.fine_only_epochs": 21}
    assert {losses[n]["loss.rmi_ignore"] for n in losses if n in ("mix-none", "mix-classmix", "colour-50")} == {
        "released"
    }


def test_merging_settles_conflicts_in_both_ways_at_each_threshold(demo: Params) -> None:
    rows = {r.name: r.training.labels for r in make_ablation("merging", demo).rows}
    assert rows.pop("control") is None
    assert rows.pop("coarse") == Labels("none", coarse=True)
    for name, labels in rows.items():
        assert labels.coarse
        assert labels.conflict == ("human" if name.endswith("-human") else None)
        assert rows[name.removesuffix("-human")].threshold == labels.threshold
    assert {labels.threshold for labels in rows.values()} == {"policy", 0.9, 0.5, 0.0}
    assert "conflict" not in rows["policy"].to_json(), "keys of labels older than the choice stay"


def test_every_row_gives_a_valid_recipe_of_the_same_number_of_crops(demo: Params, camvid: Params) -> None:
    for params, names in ((demo, NAMES[:-1]), (camvid, NAMES)):
        for name in names:
            table = make_ablation(name, params)
            configs = [(r, train_config(params, r.training, 1, Scale())) for r in table.rows if r.training]
            for recipe in ("teacher_train", "student_train"):
                seen = {(c.epochs, c.epoch_samples, c.global_batch) for r, c in configs if r.training.recipe == recipe}
                assert len(seen) <= 1, (name, recipe)


def test_a_recipe_that_ends_on_fine_labels_is_held_against_one_that_does_not(demo: Params, camvid: Params) -> None:
    def table(name: str, params: Params, tail: int) -> tuple[dict[str, int], set[tuple[str, str]]]:
        pseudo = params.student_train.pseudo.model_copy(update={"fine_only_epochs": tail})
        student = params.student_train.model_copy(update={"pseudo": pseudo})
        made = make_ablation(name, params.model_copy(update={"student_train": student}))
        ends = {
            r.name: train_config(params, r.training, 0, Scale()).pseudo.fine_only_epochs
            for r in made.rows
            if r.training and r.name in ("tail-merged", "no-tail")
        }
        return ends, {(c.row, c.baseline) for c in made.comparisons if {c.row, c.baseline} & {"tail-merged", "no-tail"}}

    length = demo.student_train.epochs
    assert table("losses", demo, 0) == ({"tail-merged": length // 6}, {("tail-merged", "rmi-masked-merged")})
    assert table("losses", demo, 5) == ({}, set())
    assert table("camvid-table", camvid, 0) == ({}, set())
    assert table("camvid-table", camvid, 5) == ({"no-tail": 0}, {("merged", "no-tail")})


def test_a_change_of_a_setting_that_is_not_there_is_named(demo: Params) -> None:
    for dotted in ("model.train_scalez", "epochz"):
        with pytest.raises(ConfigError, match=rf"^student_train\.{dotted}: Extra inputs"):
            train_config(demo, Training("student_train", "teacher", ((dotted, 1),)), 0, Scale())


def test_camvid_table_is_refused_elsewhere_and_knows_its_variant(demo: Params, camvid: Params) -> None:
    assert make_ablation("camvid-table", camvid).name == "camvid-table-default"
    with pytest.raises(ConfigError, match="profile camvid, this one has profile demo"):
        make_ablation("camvid-table", demo)
    with pytest.raises(ConfigError, match="unknown ablation 'scale': choose one of scales"):
        make_ablation("scale", demo)
    assert make_ablation("scales", camvid).name == "scales-camvid", "its cells are not the demo's"
    longer = camvid.model_copy(update={"teacher_train": camvid.teacher_train.model_copy(update={"epochs": 1280})})
    assert make_ablation("scales", longer).name == "scales-camvid-1280", (
        "nor are those of another teacher the profile's"
    )


def test_an_unknown_row_is_named_with_the_known_ones(demo: Params) -> None:
    table = make_ablation("labels", demo)
    with pytest.raises(ConfigError, match="has no row 'all': choose from baseline, attention"):
        table.pick(["both", "all"])
    assert [r.name for r in table.pick(["coarse", "both"])] == ["both", "coarse"]


def test_a_comparison_of_a_row_that_is_not_there_is_a_mistake_of_ours(demo: Params) -> None:
    table = make_ablation("labels", demo)
    with pytest.raises(AssertionError):
        Ablation("x", "x", table.needs, table.rows, (Comparison("both", "nobody", "?"),), "make x")


# -------------------------------------------------------------------------------------------------- keys


def test_seed_length_and_recipe_are_in_the_key(demo: Params) -> None:
    base = key(demo, "labels", "both")
    assert key(demo, "labels", "both", seed=1) != base
    assert key(demo, "labels", "both", scale=Scale(0.5)) != base
    assert key(changed(demo, "teacher_train.optimiser.lr", 0.3), "labels", "both") != base
    assert key(changed(demo, "calibrate.target", 0.97), "labels", "both") != base
    assert key(changed(demo, "student_train.pseudo.colour", 0.9), "labels", "both") != base
    assert key(changed(demo, "evaluate.max_gap", 7), "labels", "both") != base


def test_ranks_workers_and_where_the_data_lie_are_not(demo: Params) -> None:
    base = key(demo, "labels", "both")
    assert key(demo, "labels", "both", scale=Scale(ranks=1, workers=3)) == base
    assert key(changed(demo, "data.target.root", "/elsewhere"), "labels", "both") == base
    assert key(changed(demo, "report.title", "Another"), "labels", "both") == base


def test_a_row_without_auto_labels_does_not_depend_on_how_they_are_made(demo: Params) -> None:
    for dotted, value in (("calibrate.target", 0.97), ("student_train.pseudo.colour", 0.9), ("auto_infer.flip", False)):
        assert key(changed(demo, dotted, value), "labels", "attention") == key(demo, "labels", "attention")


def test_rows_that_stand_in_two_tables_have_one_key(demo: Params) -> None:
    released = changed(demo, "student_train.loss.rmi_ignore", "released")
    assert key(released, "threshold", "policy", 2) == key(demo, "losses", "mix-none", 2)
    assert key(demo, "threshold", "policy", 2) != key(demo, "losses", "mix-none", 2)
    assert key(demo, "labels", "attention") == key(demo, "losses", "aux-cross-entropy")


def test_a_shorter_training_keeps_the_proportion_of_its_fine_only_end(camvid: Params) -> None:
    params = changed(camvid, "student_train.pseudo.fine_only_epochs", camvid.student_train.epochs // 3)
    whole = train_config(params, Training("student_train", "teacher", labels=Labels()), 0, Scale())
    half = train_config(params, Training("student_train", "teacher", labels=Labels()), 0, Scale(0.5))
    assert half.epochs == round(whole.epochs / 2)
    assert half.pseudo.fine_only_epochs == pytest.approx(whole.pseudo.fine_only_epochs / 2, abs=1)
    assert train_config(params, Training("student_train", "teacher"), 0, Scale()).pseudo.fine_only_epochs == 0


# -------------------------------------------------------------------------------------------------- code


def test_comments_docstrings_and_blank_lines_are_no_code() -> None:
    text = '"""Doc."""\n\nimport os  # why\n\n\ndef f(x):\n    """Says."""\n    # aside\n    return "# no comment", x\n'
    assert stripped(text) == 'import os\ndef f(x):\n    return "# no comment", x\n'
    assert stripped(text.replace("why", "because").replace("Says.", "Tells\n    more.")) == stripped(text)
    assert stripped(text.replace(", x", ", -x")) != stripped(text)


def test_a_changed_source_file_changes_the_key_and_is_named(demo: Params, tmp_path: Path) -> None:
    for path in code.group_files(("train",)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((code.REPOSITORY / path).read_bytes())
    before = source_digests(("train",), tmp_path)
    assert before == source_digests(("train",))
    rmi = tmp_path / "hmsa_core" / "losses" / "rmi.py"
    rmi.write_text(rmi.read_text() + "\n\n# a remark\n")
    assert source_digests(("train",), tmp_path) == before
    rmi.write_text(rmi.read_text().replace("PROBABILITY_FLOOR = 1e-6", "PROBABILITY_FLOOR = 1e-5"))
    assert changed_files(before, source_digests(("train",), tmp_path)) == ["hmsa_core/losses/rmi.py"]


def test_every_group_finds_files() -> None:
    for group in code._GROUPS:
        assert code.group_files((group,)), group
        for pattern in code._GROUPS[group]:
            assert list(code.REPOSITORY.glob(pattern)), f"{pattern}: moved?"


def test_only_rows_of_the_policy_depend_on_how_thresholds_are_measured(demo: Params) -> None:
    other = demo.model_copy(update={"calibrate": demo.calibrate.model_copy(update={"target": 0.9})})
    rows = {row.name: row for row in make_ablation("labels", demo).rows}

    def key(params: Params, row: str) -> str:
        return cell_material(params, rows[row], 0, Scale()).key

    assert key(demo, "coarse") == key(other, "coarse")
    assert key(demo, "both-coarse") != key(other, "both-coarse")


def test_rows_with_auto_labels_treat_ignored_pixels_as_the_student_does(demo: Params) -> None:
    rows = {r.name: dict(r.training.changes) for r in make_ablation("labels", demo).rows}
    with_half = {"auto", "both", "coarse", "both-coarse"}
    assert {n for n, changes in rows.items() if changes.get("loss.rmi_ignore") == "masked"} == with_half
