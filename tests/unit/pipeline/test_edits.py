"""Ten edits of params.yaml in a finished workspace: real DVC sees exactly the stages whose settings changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from hmsa_core.io.errors import ConfigError
from pipeline.workspace import dvc_yaml, settings
from pipeline.workspace.new_workspace import InitRequest, init_workspace
from pipeline.workspace.table import TABLE, VERSIONS
from pipeline.workspace.workspace import Workspace
from tests.support.chain import dvc, set_params

TRAININGS = {"teacher-pretrain", "teacher-train", "student-train"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of profile tiny whose outputs are small files that DVC takes for the stages' work."""
    root = tmp_path_factory.mktemp("finished") / "ws"
    init_workspace(InitRequest(root, "tiny", make_data=False))
    for row in TABLE:
        for path in (*row.outs, *row.plots, row.metrics, *row.deps):
            place = root / path
            if "$" not in path and not place.exists():
                place = place if place.suffix else place / "made"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("{}" if place.suffix == ".json" else path)
    for name in ("cityscapes", "mapillary"):
        (root / "data/demo" / name).mkdir(parents=True)
    with chdir(root), Repo() as repo:
        repo.commit(force=True)
    return root


@pytest.fixture
def root(finished: Path) -> Iterator[Path]:
    """The finished workspace, as it was before each edit."""
    kept = {name: (finished / name).read_bytes() for name in ("params.yaml", "dvc.yaml", "settings.yaml", "dvc.lock")}
    yield finished
    for name, content in kept.items():
        (finished / name).write_bytes(content)


def _changed(root: Path) -> set[str]:
    with chdir(root), Repo() as repo:
        return set(repo.status())


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, set()),
        ({"student_train.ema_decay": 0.0, "report.title": "Auto-labelling report"}, set()),
        ({"runtime.engine": "ray"}, set()),
        ({"pseudo_label.threshold": 0.9}, {"pseudo-label", "evaluate"}),
        ({"train.optimiser.lr": 0.05}, {"teacher-pretrain"}),  # the others have rates of their own
        ({"train.optimiser.momentum": 0.8}, TRAININGS),
        ({"runtime.threads": 2}, TRAININGS | {"calibrate", "auto-infer", "evaluate"}),
        ({"teacher_train.epochs": 9}, {"teacher-train"}),
        ({"student_train.sampling.tile": 32}, {"pseudo-label", "student-train"}),
        ({"auto_infer.flip": False}, {"calibrate", "auto-infer", "evaluate"}),
        ({"evaluate.max_gap": 3}, {"calibrate", "evaluate"}),
        ({"data.roles.guard_frames": 2}, {"prepare"}),
        ({"report.title": "Mine"}, {"report"}),
    ],
)
def test_an_edit_changes_exactly_the_stages_that_depend_on_it(
    root: Path, changes: Mapping[str, Any], stages: set[str], said
) -> None:
    set_params(root, changes)
    assert (root / "params.yaml").read_text().startswith("profile:"), "the comments are gone: that alone runs nothing"
    assert _changed(root) == ({"settings"} if changes else set())
    said("config", "resolve", "--workspace", root)  # as the first stage does
    assert _changed(root) - {"settings"} == stages


def test_a_stage_whose_version_was_raised_runs_again_after_dvc_yaml_is_renewed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = Workspace(root).params
    rows = tuple(dataclasses.replace(row, version=row.version + (row.name == "calibrate")) for row in TABLE)
    monkeypatch.setattr(settings, "TABLE", rows)
    monkeypatch.setattr(dvc_yaml, "VERSIONS", VERSIONS | {"calibrate": 99})
    before = (root / "dvc.yaml").read_text().splitlines()
    with pytest.raises(ConfigError, match=r"dvc\.yaml: written for another program .*\(stage settings\)"):
        dvc_yaml.check_dvc_yaml(root / "dvc.yaml", params)
    assert dvc_yaml.renew_dvc_yaml(root / "dvc.yaml", params) == ["settings"]
    renewed = (root / "dvc.yaml").read_text().splitlines()
    changed = [new for new, old in zip(renewed, before, strict=True) if new != old]
    assert [line.split(" --program")[0].strip() for line in changed] == ["cmd: exec autolabel config resolve"]
    settings.write_resolved(Workspace(root))  # as the stage does
    assert _changed(root) == {"settings", "calibrate"}


def test_dvc_yaml_of_other_settings_is_refused_and_what_people_added_to_it_is_kept(root: Path) -> None:
    path = root / "dvc.yaml"
    own = "  mine:\n    cmd: echo mine\n    deps:\n      - report\n"
    path.write_text(
        path.read_text().replace("      - policies\n", "      - policies\n      - notes.txt # mine\n") + own
    )
    ws = Workspace(root)
    assert dvc_yaml.differing_stages(path, ws.params) == [], "additions are no fault"
    set_params(root, {"data.pretrain": None})
    assert dvc_yaml.differing_stages(path, Workspace(root).params) == ["prepare"]
    assert dvc_yaml.renew_dvc_yaml(path, Workspace(root).params) == ["prepare"]
    assert "data.pretrain.root" not in path.read_text()
    assert path.read_text().count("      - notes.txt # mine\n") == 2
    assert path.read_text().endswith(own)
    assert dvc_yaml.renew_dvc_yaml(path, ws.params) == ["prepare"], "the other way round: a pretraining set was added"
    assert dvc_yaml.differing_stages(path, ws.params) == []


def test_an_experiment_sets_the_threshold(root: Path) -> None:
    dvc(root, "exp", "run", "--quiet", "--single-item", "settings", "-S", "pseudo_label.threshold=0.9")
    assert Workspace(root).params.pseudo_label.threshold == 0.9
    assert _changed(root) == {"pseudo-label", "evaluate"}
