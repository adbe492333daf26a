"""Golden table: which stages run again when a parameter or a file changes (read from dvc.yaml)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.workspace.dvc_yaml import render_dvc_yaml
from pipeline.workspace.params import Params
from pipeline.workspace.table import STAGES

GRAPH = yaml.safe_load(render_dvc_yaml(Params.of_profile("demo").data))["stages"]
SETTINGS_STAGE = GRAPH.pop("settings")
ALL = set(STAGES)
AFTER_TEACHER = ALL - {"prepare", "teacher-pretrain"}
AFTER_LABELS = {"pseudo-label", "student-train", "evaluate", "report"}

# Parameter or file -> every stage that has to run again (an upper bound: a stage whose input turns out
# unchanged is skipped by DVC, and a job whose key is unchanged finds its result in work/).
GOLDEN: dict[str, set[str]] = {
    "data.target.root": ALL,
    "prepare.workers": ALL,
    "teacher_pretrain.epochs": ALL - {"prepare"},
    "teacher_train.epochs": AFTER_TEACHER,
    "teacher_train.sampling.tile": ALL,
    "calibrate.target": {"calibrate"} | AFTER_LABELS,
    "auto_infer.scales": {"calibrate", "auto-infer"} | AFTER_LABELS,
    "pseudo_label.threshold": AFTER_LABELS,
    "pseudo_label.merge": AFTER_LABELS,
    "student_train.sampling.tile": AFTER_LABELS,
    "student_train.epochs": {"student-train", "evaluate", "report"},
    "evaluate.draws": {"evaluate", "report"},
    "evaluate.max_leaked": {"calibrate", "evaluate"} | AFTER_LABELS,
    "report.title": {"report"},
    "versions.pseudo_label": AFTER_LABELS,
    "versions.auto_infer": {"auto-infer"} | AFTER_LABELS,
    "file:models/current.json": {"calibrate", "auto-infer"} | AFTER_LABELS,
    "file:data/index/unlabelled.parquet": {"auto-infer"} | AFTER_LABELS,
    "file:labels/raw.review.jsonl": AFTER_LABELS,
    "file:policies": AFTER_LABELS,
    "file:data/index/report.parquet": {"evaluate", "report"},
}


def _touches(dependency: str, changed: str) -> bool:
    """Whether a dependency on a parameter sees a change of a (dotted) key."""
    return changed == dependency or changed.startswith(f"{dependency}.") or dependency.startswith(f"{changed}.")


def _first(changed: str) -> set[str]:
    if changed.startswith("file:"):
        path = changed.removeprefix("file:")
        return {name for name, s in GRAPH.items() if path in s["deps"]}
    return {name for name, s in GRAPH.items() if any(_touches(d, changed) for d in s["params"][0]["settings.yaml"])}


def _outputs(stage: str) -> list[str]:
    return [*GRAPH[stage].get("outs", ()), *(next(iter(m)) for m in GRAPH[stage].get("metrics", ()))]


def _rerun(changed: str) -> set[str]:
    found = _first(changed)
    while True:
        more = {
            name
            for name, s in GRAPH.items()
            for upstream in found
            for out in _outputs(upstream)
            if any(d == out or Path(out) in Path(d).parents for d in s["deps"])
        }
        if more <= found:
            return found
        found |= more


@pytest.mark.parametrize("changed", GOLDEN)
def test_a_change_re_runs_exactly_the_stages_of_the_golden_table(changed: str) -> None:
    assert _rerun(changed) == GOLDEN[changed]


def test_every_section_of_the_params_is_watched_by_some_stage() -> None:
    watched = {p.split(".")[0] for s in GRAPH.values() for p in s["params"][0]["settings.yaml"]}
    assert {*Params.model_fields, "versions"} - {"profile", "runtime"} == watched, "who runs the units changes no byte"
    assert SETTINGS_STAGE["params"] == [{"params.yaml": None}]
    assert SETTINGS_STAGE["outs"] == ["settings.yaml"]


def test_stages_are_plain_commands_with_dvc_as_parent_outputs_are_cached_and_metrics_stay_in_git() -> None:
    for name, stage in GRAPH.items():
        assert stage["cmd"] == f"exec autolabel stage {name}"
        assert all(isinstance(out, str) for out in stage["outs"]), "plain outs: dvc push and the run cache work"
        assert all(next(iter(m.values())) == {"cache": False} for m in stage["metrics"])


def test_a_workspace_without_a_pretraining_set_does_not_depend_on_one() -> None:
    text = render_dvc_yaml(Params.of_profile("camvid").data)
    assert "data.pretrain.root" not in text
    assert yaml.safe_load(text)["stages"]["prepare"]["deps"] == ["${data.target.root}"]
