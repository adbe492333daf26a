"""Interrupted training goes on exactly: whole checkpoints, states and logs equal, tolerance 0 (one rank)."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from hmsa_core.io.errors import ConfigError, InterruptedRunError, TrainingError
from hmsa_core.io.process import StopRequest
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import TrainSpec
from hmsa_core.training import run as train
from hmsa_core.training.run import Validation
from hmsa_core.training.state import StateStore
from tests.support.faults import faulty
from tests.support.interruptions import Interruption, KilledError, killed_after, killed_in_validation, stopped_in
from tests.support.training import (
    assert_same_run,
    context,
    folder_bytes,
    log_of,
    run,
    student_spec,
    train_spec,
    write_student_data,
)

pytestmark = pytest.mark.long

# 3 epochs of 8 crops, batch 2: steps 0..11, epochs end after 4, 8, 12; fine only from step 8; saved every 3.
LAST = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student_data(tmp_path_factory.mktemp("data"))


def student(data: Path, work: Path, **changes: object) -> TrainSpec:
    """Everything at once: mixed crops, a fine-only last epoch, accumulation, dropout, average, validation."""
    changes = {"pseudo__mix": "classmix", "loss__per_scale_weight": 0.05, "optimiser__clip_norm": 1.0, **changes}
    return student_spec(data, work, checkpoint_every=3, **changes)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("whole")
    run(student(data, work))
    return work


def stopped_in_validation(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    real = Validation._score

    def score(self: Validation, *args: object) -> object:
        stop.request()
        return real(self, *args)  # type: ignore[arg-type]

    patch.setattr(Validation, "_score", score)


def killed_in_a_save(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    real = StateStore.save

    def save(self: StateStore, step: int, *args: object) -> object:
        if step != 6:
            return real(self, step, *args)  # type: ignore[arg-type]
        with faulty(8, errno.EIO):
            return real(self, step, *args)  # type: ignore[arg-type]

    patch.setattr(StateStore, "save", save)


def killed_before_the_model_is_written(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    def save_model(*args: object) -> str:
        raise KilledError

    patch.setattr(train, "save_model", save_model)


INTERRUPTIONS: dict[str, Interruption] = {
    "killed in the middle of an epoch": killed_after(5),
    "killed before the first state": killed_after(2),
    "killed at the switch to fine labels only": killed_after(8),
    "killed at the last step": killed_after(LAST - 1),
    "stopped between two passes of a step": stopped_in(6, between_passes=True),
    "stopped in the very first pass": stopped_in(0, between_passes=True),
    "stopped at the end of a step": stopped_in(6, between_passes=False),
    "stopped in the last step before an epoch's edge": stopped_in(7, between_passes=False),
    "stopped in the last pass of all": stopped_in(LAST - 1, between_passes=False),
    "killed during validation": killed_in_validation(),
    "stopped during validation": stopped_in_validation,
    "killed in the middle of a save": killed_in_a_save,
    "killed before the model is written": killed_before_the_model_is_written,
}


def interrupt(spec: TrainSpec, how: Interruption, ranks: Ranks | None = None) -> BaseException:
    """Train until it is interrupted, and say by what."""
    stop = StopRequest()
    with pytest.MonkeyPatch.context() as patch:
        how(patch, stop)
        with pytest.raises((KilledError, InterruptedRunError, OSError)) as caught:
            train.run(spec, context(spec, stop, ranks))
    return caught.value


QUICK = ("stopped between two passes of a step", "killed in the middle of an epoch", "stopped during validation")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.fault) for name in INTERRUPTIONS]
)
def test_a_resumed_run_leaves_the_same_bytes_as_an_uninterrupted_one(
    name: str, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    spec = student(data, tmp_path / "work")
    interrupt(spec, INTERRUPTIONS[name])
    assert not (spec.work / "model" / "model.json").exists()
    run(spec)
    assert_same_run(spec.work, uninterrupted, LAST)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_resumed_run_does_the_same_steps_and_ends_next_to_the_uninterrupted_one(
    data: Path, tmp_path: Path
) -> None:
    gpu = Ranks(0, 1, torch.device("cuda", 0))
    specs = [student(data, tmp_path / name, runtime__device="cuda") for name in ("whole", "cut")]
    assert isinstance(interrupt(specs[1], killed_after(7), gpu), KilledError)
    for spec in specs:
        run(spec, gpu)
    whole, cut = ([line for line in log_of(spec.work) if line["event"] == "train"] for spec in specs)
    assert [(line["step"], line["lr"]) for line in cut] == [(line["step"], line["lr"]) for line in whole]
    # cuDNN and atomic additions change last bits: what grows out of them in twelve steps stays small.
    assert [line["loss"] for line in cut] == pytest.approx([line["loss"] for line in whole], rel=0.02)


def test_a_stop_request_saves_the_state_and_says_where_it_stopped(data: Path, tmp_path: Path) -> None:
    spec = student(data, tmp_path / "work")
    error = interrupt(spec, stopped_in(6, between_passes=True))
    assert isinstance(error, InterruptedRunError)
    assert "at step 6 of 12" in error.message
    assert error.exit_code == 143
    assert StateStore(spec.work / "state", key="any").steps() == [3, 6]


def test_ranks_that_read_different_states_do_not_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose disk did not answer would take an older state, and stay apart from the others without a word."""
    spec = student(data, tmp_path / "work")
    assert isinstance(interrupt(spec, killed_after(5)), KilledError)
    monkeypatch.setattr(
        Ranks, "gather", lambda self, value: [value, "no state"] if str(value).startswith("step") else [value]
    )
    with pytest.raises(TrainingError, match=r"different states \(rank 0: step 3, rank 1: no state\)"):
        run(spec)


def test_a_finished_run_is_not_done_again(data: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **named: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(train, "make_model", never)
    before = folder_bytes(uninterrupted / "model")
    spec = student(data, uninterrupted)
    run(spec)
    assert folder_bytes(uninterrupted / "model") == before


def test_a_state_of_other_settings_is_refused_but_saving_and_loading_may_change(data: Path, tmp_path: Path) -> None:
    spec = train_spec(data, tmp_path / "work")
    assert isinstance(interrupt(spec, killed_after(5)), KilledError)
    other = train_spec(data, tmp_path / "work", optimiser__momentum=0.5)
    with pytest.raises(ConfigError, match="other settings or data"):
        run(other)
    changed = train_spec(data, tmp_path / "work", checkpoint_every=1, keep_checkpoints=3, runtime__workers=1)
    run(changed)
    assert (tmp_path / "work" / "model" / "model.json").exists()
