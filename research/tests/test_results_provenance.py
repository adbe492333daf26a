"""Each number's command, seed, machine, commit and time; machines told apart by more than their name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hmsa_core.io import atomic
from pipeline import provenance
from pipeline.workspace import Workspace
from research.results.ablations import workspace_of
from research.results.collect import collect
from research.results.page import Sources, results_page
from research.results.provenance import cells_lines, minutes_line
from research.tests.ablations import finished_workspace, put_cell, record_of


def test_each_cell_stands_on_the_page_with_its_command_commit_and_machine(tmp_path: Path) -> None:
    sources = Sources.of(tmp_path)
    folder = sources.ablations / "labels"
    zen = {"processor": "EPYC", "family": {"cpu family": "26", "model": "2"}, "cores": 2, "gpus": []}
    put_cell(folder, "both", 0, 0.8, machine=zen, commit="abcdef0123456789", mean_iou=0.7811)
    put_cell(folder, "both", 1, 0.8, uncommitted=["a.py"], copied_from="scales/both-seed1.json", mean_iou=0.7922)
    page = results_page(sources)
    assert (
        "| both | 0 | 78.11 | 10 | 2 | `autolabel ablate scales --rows both --seeds 0` | abcdef012345 | EPYC (family 26, model 2), 2 cores |"
        in page
    )
    told = "| c0ffeec0ffee + changes | A processor, 2 cores (copied from scales/both-seed1.json) |"
    assert f"`autolabel ablate scales --rows both --seeds 1` {told}" in page


def test_a_training_that_rows_share_counts_once_and_each_rows_part_of_the_evaluation() -> None:
    shared = record_of("x", 0)["training"]
    records = [
        record_of("average", 0, training=shared, seconds={"train": 600.0, "evaluate": 30.0}),
        record_of("max", 0, training=shared, seconds={"train": 600.0, "evaluate": 90.0}),
        record_of("hierarchical", 0, seconds={"train": 1200.0, "evaluate": None}),  # as if killed while it was timed
        record_of("hierarchical", 1, seconds={"train": 600.0, "evaluate": 60.0}),
        record_of("auto", 1, copied_from="labels/auto-seed1.json", seconds={"train": 600.0, "evaluate": 60.0}),
        record_of("teacher", 0, training=None, seconds={"train": 0.0, "evaluate": 60.0}),
    ]
    assert minutes_line(records) == [
        "Minutes of training and evaluation by seed (without 1 copied cell): 0: 32, 1: 11."
    ]


@pytest.mark.parametrize(
    ("name", "workspace"),
    [
        ("scales", ""),
        ("losses-camvid", "workspaces/camvid"),
        ("camvid-table-default", "workspaces/camvid"),
        ("camvid-table-drive_shift", "workspaces/camvid-drive_shift"),
        ("camvid-table-default-1280", "workspaces/camvid-1280"),
        ("losses-camvid-1280", "workspaces/camvid-1280"),
    ],
)
def test_a_command_names_the_workspace_of_its_table(name: str, workspace: str) -> None:
    assert workspace_of(name) == workspace
    line = next(line for line in cells_lines([record_of("both", 0)], workspace) if line.startswith("| both"))
    assert ("--seeds 0 --workspace " + workspace in line) == bool(workspace)


@pytest.mark.parametrize(
    ("profile", "edited", "command"),
    [
        ("demo", ("    root: data/demo/cityscapes ", "    root: elsewhere "), "make demo"),
        (
            "camvid",
            ("    variant: default ", "    variant: drive_shift "),
            'autolabel init DIR --profile camvid; params.yaml: data.target.variant: "drive_shift"; dvc repro',
        ),
        ("tiny", ("    root: data/demo/cityscapes ", "    root: elsewhere "), "dvc repro"),
        (
            "demo",
            ("  init_from: null ", "  init_from: /home/me/secret/weights "),
            "autolabel init DIR --profile demo; params.yaml: teacher_pretrain.init_from: a file or folder, "
            "teacher_train.init_from: a file or folder; dvc repro",
        ),
        (
            "demo",
            ("  overrides: {}", "  overrides: {car: 0.9}"),
            "autolabel init DIR --profile demo; params.yaml: calibrate.overrides.car: 0.9; dvc repro",
        ),
        ("demo", ("    workers: 0", "    workers: 1"), "make demo"),
        (
            "camvid",
            ("    precision: bf16 ", "    precision: fp16 "),  # other weights: no speed alone
            'autolabel init DIR --profile camvid; params.yaml: student_train.runtime.precision: "fp16", '
            'teacher_train.runtime.precision: "fp16"; dvc repro',
        ),
    ],
)
def test_a_run_with_settings_of_its_own_does_not_say_that_the_profiles_command_makes_it(
    profile: str, edited: tuple[str, str], command: str, tmp_path: Path
) -> None:
    ws = finished_workspace(tmp_path / "ws", profile)
    settings = ws.path("params.yaml").read_text()
    assert edited[0] in settings
    ws.path("params.yaml").write_text(settings.replace(*edited))
    record = atomic.read_json(collect(Workspace(ws.root), tmp_path / "runs"))
    assert record["command"] == command


def test_two_processors_of_one_name_are_two_kinds_of_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(family: str) -> dict[str, object]:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(
            f"processor\t: 0\ncpu family\t: {family}\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t: 9\n"
        )
        monkeypatch.setattr(provenance, "CPUINFO", cpuinfo)
        return provenance.describe_machine()

    fast, slow = of("26"), of("25")
    assert fast["family"] == {"cpu family": "26", "model": "2"}
    assert provenance.same_kind(fast, of("26"))
    assert not provenance.same_kind(fast, slow)
    untold = {k: v for k, v in fast.items() if k != "family"}  # as in records that were made before the family was told
    assert provenance.same_kind(untold, fast)
    assert provenance.same_kind(slow, untold)
    assert not provenance.same_kind(untold | {"cores": 3}, fast)


def test_the_commit_of_a_project_that_only_holds_the_installed_package_is_not_ours(tmp_path: Path) -> None:
    site = tmp_path / "venv"
    (site / "pipeline").mkdir(parents=True)
    (site / "pipeline/__init__.py").touch()
    (tmp_path / ".gitignore").write_text("venv/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", ".gitignore"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    assert provenance.commit_of(site) == {"commit": None, "uncommitted": []}
    subprocess.run([*git, "add", "-f", "venv/pipeline/__init__.py"], cwd=tmp_path, check=True)
    assert provenance.commit_of(site, ["pipeline"])["uncommitted"] == ["venv/pipeline/__init__.py"]
    assert provenance.commit_of(site)["commit"]
