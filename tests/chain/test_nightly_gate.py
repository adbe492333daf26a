"""Who teaches tomorrow, through the real flow: a worse student never, a better one once."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.io import atomic
from hmsa_core.labels import LabelStore
from hmsa_core.models import read_meta
from pipeline.night.gatekeeper import apply_verdict, recipe_digest
from pipeline.workspace.registry import Registry
from pipeline.workspace.workspace import Workspace
from tests.support.chain import environment, run
from tests.support.nightly import artifacts_of, finish, start
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.chain, pytest.mark.slow, pytest.mark.timeout(3600)]

STAGES = ["student-train", "evaluate"]
# Decay this strong shrinks every weight to a fraction: nothing is left of what the teacher knew.
WORSE = {"student_train.optimiser.weight_decay": 30.0, "student_train.control": False}
# Profile tiny's teacher is hardly trained: four times its steps at its own rate are better for certain.
BETTER = {"student_train.epochs": 30, "student_train.optimiser.lr": 0.1, "student_train.control": False}


def _night(folder: Path, params: dict[str, Any], stages: list[str] | None = STAGES) -> dict[str, Any]:
    given = start(folder, params=params, stages=stages, promote=True)
    assert finish(folder, given) == "Completed"
    line: dict[str, Any] = json.loads((folder / "work/nightly/history.jsonl").read_text().splitlines()[-1])
    return line | {"page": artifacts_of(folder, given)["auto-label-morning"]}


def test_a_worse_student_is_not_promoted_and_a_better_one_is_exactly_once(orchestrated: Path) -> None:
    registry = Registry(orchestrated)
    first = _night(orchestrated, BETTER | {"student_train.epochs": 29})
    assert first["kind"] == "kept"
    assert "0 of 3 A/A trainings" in first["page"]
    assert "autolabel models aa" in first["page"], "what is missing is named with the command that makes it"

    said = run(orchestrated, "autolabel", "models", "aa").text
    assert "mean IoU of 3 trainings" in said
    before = registry.current()

    worse = _night(orchestrated, WORSE)
    assert worse["kind"] == "kept"
    assert worse["gain"] < -0.01  # profile tiny's teacher has little more to lose
    assert "lower bound" in worse["page"]
    assert registry.current() == before
    assert registry.history() == []

    better = _night(orchestrated, BETTER)
    assert better["kind"] == "promoted", better["page"]
    assert better["gain"] > 0
    (promotion,) = registry.history()
    assert promotion["action"] == "promote"
    assert registry.current() == promotion["to"] == f"models/registry/{better['promoted']}"
    student = read_meta(orchestrated / "models/student")["weights_sha256"]
    assert read_meta(orchestrated / registry.current())["weights_sha256"] == student

    # The gate once more, as after a crash: the student is not promoted twice.
    assert "teaches already" in apply_verdict(Workspace(orchestrated))["decision"]
    assert len(registry.history()) == len(registry.versions()) == 1

    # The next night works with the new teacher, and a student that is worse than it stays a student.
    again = _night(orchestrated, WORSE, stages=None)
    assert again["kind"] == "kept", again["page"]
    assert len(registry.history()) == len(registry.versions()) == 1
    manifest = LabelStore.open(orchestrated / "labels/raw").manifest
    assert manifest["lineage"]["teacher"] == student, "it labelled with what was promoted"
    page = (orchestrated / "work/nightly/morning.html").read_text()
    assert f"models/registry/{better['promoted']}" in page, "what differs from last night: the teacher"

    assert registry.rollback() == before
    assert [line["action"] for line in registry.history()] == ["promote", "rollback"]


def test_aa_trainings_are_recorded_with_their_lineage_and_go_on_after_a_stop(workspace: Path) -> None:
    ws = Workspace(workspace)
    command = ["autolabel", "models", "aa", "--runs", "3"]
    process = subprocess.Popen(command, cwd=workspace, env=environment(), stderr=subprocess.PIPE, text=True)
    models = lambda: set((workspace / "work/student-train").glob("*/model/model.json"))  # noqa: E731
    there = models()
    assert len(there) == 2, "student and control"
    try:
        wait_for("the second training", lambda: models() - there, 600, every_s=0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, process.stderr.read() if process.stderr else ""
    finally:
        process.kill()
        process.communicate()
    assert not (workspace / "models/registry/aa.json").exists(), "the record appears when all runs are there"
    done = {path: path.stat().st_mtime_ns for path in models()}
    assert "mean IoU of 3 trainings" in run(workspace, *command).text
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished training is not repeated"
    record = atomic.read_json(workspace / "models/registry/aa.json")
    student = read_meta(workspace / "models/student")["weights_sha256"]
    assert [row["seed"] for row in record["runs"]] == [0, 1, 2]
    assert record["runs"][0]["weights_sha256"] == student, "the first run is the student that is there already"
    assert len({row["weights_sha256"] for row in record["runs"]}) == 3
    assert record["recipe"] == recipe_digest(ws)
    assert record["lineage"]["teacher"] == read_meta(ws.teacher())["weights_sha256"]
    assert record["lineage"]["images"] == 10
    means = atomic.read_json(workspace / "metrics/evaluate.json")["mean_iou"]
    assert record["mean_iou"][0] == pytest.approx(means["student"]["multi"])
