"""The gatekeeper: looks are counted per report set, a verdict for other weights is refused, promotion happens once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmsa_core import taxonomy
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, IntegrityError
from hmsa_core.lineage import Lineage
from pipeline.cli.main import main
from pipeline.jobs.support import weights_of
from pipeline.night import gatekeeper
from pipeline.night.gatekeeper import apply_verdict, count_look, recipe_digest
from pipeline.stages.student_train import check_rounds
from pipeline.workspace.registry import Registry
from pipeline.workspace.workspace import Workspace
from research.tests.ablations import bare_workspace
from tests.support.chain import set_params
from tests.support.checkpoints import checkpoint, taught

CLASSES = 19


def _confusions(accuracy: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    result = np.zeros((120, CLASSES, CLASSES), np.int64)
    for image in range(120):
        hits = rng.binomial(2000, np.clip(accuracy + rng.normal(0, 0.01, CLASSES), 0, 1))
        result[image] = np.diag(hits)
        for c in range(CLASSES):
            result[image, c, (c + 1) % CLASSES] = 2000 - hits[c]
    return result


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    atomic.write_json(tmp_path / "models/current.json", {"teacher": "stage:teacher-train"})
    Index.write(tmp_path / "data/index/target.parquet", [], taxonomy.cityscapes(), "target")
    return bare_workspace(tmp_path)


def _night(
    ws: Workspace, accuracy: float, weights: bytes, *unknown: str, lineage: Lineage | None = None, aa: bool = True
) -> None:
    """A student of this accuracy next to a teacher of 0.8, as `evaluate` leaves them."""
    if aa:
        atomic.write_json(ws.path("models/registry/aa.json"), {"mean_iou": [0.6, 0.601, 0.602]})
    student = checkpoint(ws.path("models/student"), weights, lineage)
    names = np.array([f"i{i}" for i in range(120)])
    blocks = np.array([f"b{i // 3}" for i in range(120)])
    for model, level, seed in (("teacher", 0.8, 1), ("student", accuracy, 2)):
        path = ws.path(f"evaluation/confusions-{model}.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, names=names, blocks=blocks, confusions=_confusions(level, seed))
    verdict = {"candidate_weights_sha256": weights_of(student), "gain": {}, "unknown_lineage": list(unknown)}
    verdict["incumbent"] = "teacher"
    atomic.write_json(ws.path("evaluation/verdict.json"), verdict)


def _change(ws: Workspace, key: str, value: object) -> None:
    set_params(ws.root, {key: value})


def test_a_better_student_is_promoted_once(workspace: Workspace) -> None:
    _night(workspace, 0.9, b"good")
    first = apply_verdict(workspace)
    assert first["promoted"], first["decision"]
    assert workspace.is_promoted()
    again = apply_verdict(workspace)
    assert again["promoted"] is None
    assert "teaches already" in again["decision"]


def test_a_student_of_a_teacher_whose_images_are_unknown_is_kept_out(workspace: Workspace) -> None:
    gap = "onnx 0123: what it learned from is not listed"
    _night(workspace, 0.9, b"good", gap)
    reported = apply_verdict(workspace)
    assert reported["promoted"] is None
    assert reported["reasons"] == [f"that the candidate never saw the report images is not proven: {gap}"]
    assert reported["unknown_lineage"] == [gap]


def test_a_persons_rollback_stands_on_the_next_night_until_a_person_takes_it_back(workspace: Workspace) -> None:
    _night(workspace, 0.9, b"good")
    version = apply_verdict(workspace)["promoted"]
    registry = Registry(workspace.root)
    registry.rollback(by="ana", reason="worse in rain")
    again = apply_verdict(workspace)
    assert (again["promote"], again["promoted"], workspace.is_promoted()) == (True, None, False)
    assert (
        f"{version} was rolled back by ana (worse in rain); `autolabel models promote {version}`" in again["decision"]
    )
    registry.promote(registry.get(version), by="ana")
    assert "teaches already" in apply_verdict(workspace)["decision"]


def test_the_last_round_of_auto_labels_does_not_teach_unless_the_limit_is_lifted(workspace: Workspace) -> None:
    _night(workspace, 0.9, b"first", lineage=taught("pseudo"))
    first = apply_verdict(workspace)["promoted"]
    assert first
    check_rounds(workspace, workspace.teacher())
    _night(workspace, 0.95, b"second", lineage=taught("pseudo", atomic.sha256_bytes(b"first")))
    second = apply_verdict(workspace)
    assert (second["promote"], second["promoted"]) == (True, None)
    assert "round 2 of auto-labels, and student_train.max_rounds is 2" in second["decision"]
    assert workspace.teacher().name == first
    with pytest.raises(ConfigError, match="2 rounds of auto-labels are behind it"):
        check_rounds(workspace, workspace.path("models/student"))
    _change(workspace, "student_train.max_rounds", None)
    lifted = Workspace(workspace.root)
    check_rounds(lifted, lifted.path("models/student"))
    assert apply_verdict(lifted)["promoted"]


def _pinned_teacher(ws: Workspace) -> Registry:
    """The first teacher is registered and pinned; another model teaches now and is worse than it."""
    teacher, registry = checkpoint(ws.path("models/teacher"), b"first"), Registry(ws.root)
    registry.pin_champion(registry.register(teacher))
    _night(ws, 0.85, b"good")
    with np.load(ws.path("evaluation/confusions-teacher.npz")) as file:
        rest = {name: file[name] for name in ("names", "blocks")}
    np.savez(ws.path("evaluation/confusions-incumbent.npz"), confusions=_confusions(0.8, 1), **rest)
    np.savez(ws.path("evaluation/confusions-teacher.npz"), confusions=_confusions(0.9, 3), **rest)
    atomic.write_json(
        ws.path("evaluation/metrics.json"), {"models": {"teacher": {"weights_sha256": weights_of(teacher)}}}
    )
    return registry


def test_a_pinned_reference_counts_as_the_teacher_too_and_one_without_a_score_holds_a_promotion_up(
    workspace: Workspace,
) -> None:
    champion = _pinned_teacher(workspace).champion()
    assert champion is not None
    verdict = apply_verdict(workspace)
    assert verdict["promote"] is False
    assert any("points below the reference champion v0001-" in reason for reason in verdict["reasons"])
    atomic.write_json(workspace.path("evaluation/metrics.json"), {"models": {"teacher": {"weights_sha256": "0" * 64}}})
    verdict = apply_verdict(workspace)
    assert (verdict["promote"], verdict["promoted"]) == (False, None)
    assert "dvc repro --force --single-item evaluate" in verdict["reasons"][-1]
    classes = replace(taxonomy.cityscapes(), classes=("street", *taxonomy.cityscapes().classes[1:])).to_json()
    checkpoint(champion.path, b"others", class_table=classes)
    verdict = apply_verdict(workspace)
    assert (verdict["promote"], verdict["promoted"]) == (False, None)
    assert "has other classes" in verdict["reasons"][-1]
    assert "autolabel models pin VERSION" in verdict["reasons"][-1]


def test_a_student_is_not_promoted_over_a_teacher_that_it_was_not_judged_against(workspace: Workspace) -> None:
    _pinned_teacher(workspace)
    path = workspace.path("evaluation/verdict.json")
    atomic.write_json(path, atomic.read_json(path) | {"incumbent_weights_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="judged against another teacher") as error:
        apply_verdict(workspace)
    assert "dvc repro evaluate" in error.value.hint
    teacher = atomic.read_json(workspace.path("models/teacher/model.json"))["weights_sha256"]
    atomic.write_json(path, atomic.read_json(path) | {"incumbent_weights_sha256": teacher})
    apply_verdict(workspace)


def test_a_veto_for_a_class_that_is_not_there_ends_the_night(workspace: Workspace) -> None:
    _change(workspace, "evaluate.gate.veto_recall", ["wheelchair"])
    _night(workspace, 0.9, b"good")
    with pytest.raises(ConfigError, match=r"evaluate\.gate\.veto_recall: no class is called 'wheelchair'"):
        apply_verdict(Workspace(workspace.root))


def test_a_worse_student_and_a_switched_off_promotion_change_nothing(workspace: Workspace) -> None:
    _night(workspace, 0.7, b"bad")
    assert "kept stage:teacher-train" in apply_verdict(workspace)["decision"]
    _night(workspace, 0.9, b"good")
    assert "switched off" in apply_verdict(workspace, promote=False)["decision"]
    assert not workspace.is_promoted()


def test_without_aa_trainings_nothing_is_promoted_and_the_reason_is_reported(workspace: Workspace) -> None:
    _night(workspace, 0.9, b"good", aa=False)
    decision = apply_verdict(workspace)["decision"]
    assert "0 of 3 A/A trainings" in decision
    assert "autolabel models aa" in decision, "the message names what fixes it"


def test_a_spread_that_was_measured_on_another_recipe_is_reported(workspace: Workspace) -> None:
    _night(workspace, 0.9, b"good", aa=False)
    record = {"mean_iou": [0.6, 0.601, 0.602], "recipe": recipe_digest(workspace)}
    atomic.write_json(workspace.path("models/registry/aa.json"), record)
    assert apply_verdict(workspace, promote=False)["notes"] == []
    _change(workspace, "student_train.optimiser.weight_decay", 0.001)
    (note,) = apply_verdict(Workspace(workspace.root), promote=False)["notes"]
    assert "another recipe" in note
    assert "autolabel models aa" in note


def test_a_student_with_another_start_is_another_recipe_and_its_aa_trainings_start_there(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = recipe_digest(workspace)
    _change(workspace, "student_train.seed", 7)
    assert recipe_digest(Workspace(workspace.root)) == digest, "the seed is no part of it"
    _change(workspace, "student_train.init", "pretrained")
    ws, starts = Workspace(workspace.root), []
    assert recipe_digest(ws) != digest

    def train(*_: object, init_from: Path | None, **__: object) -> Path:
        starts.append(init_from)
        return Path("run")

    monkeypatch.setattr(gatekeeper, "train_model", train)
    monkeypatch.setattr(Workspace, "teacher", lambda of: of.path("models/teacher"))
    gatekeeper._train(ws, 0, 0, 2)
    assert starts == [None], "from the trunk's weights, as the student"


def test_aa_trainings_need_labels_and_at_least_two_runs(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "aa", "--workspace", str(workspace.root)]) == 3
    assert "no auto-labels yet" in capsys.readouterr().err
    assert main(["models", "aa", "--runs", "1", "--workspace", str(workspace.root)]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_a_verdict_on_other_weights_is_refused(workspace: Workspace) -> None:
    _night(workspace, 0.9, b"good")
    checkpoint(workspace.path("models/student"), b"other")
    with pytest.raises(IntegrityError, match="judged other weights"):
        apply_verdict(workspace)


def test_looks_are_counted_by_candidate_and_a_report_set_that_grows_spends_the_same_alpha(workspace: Workspace) -> None:
    assert count_look(workspace, "a", ("x", "y")) == 1
    assert count_look(workspace, "a", ("x", "y")) == 1, "the same candidate again is no new look"
    assert count_look(workspace, "b", ("x", "y", "z")) == 2, "two of the images have been looked at before"
    assert count_look(workspace, "b", ("x", "y", "z")) == 2
    assert count_look(workspace, "c", ("y", "w")) == 3
    assert count_look(workspace, "c", ("v",)) == 1, "images that nobody has looked at"
    assert count_look(workspace, "a", ("x", "y")) == 1, "a look keeps its number"
