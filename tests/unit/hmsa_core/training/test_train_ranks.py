"""Two ranks: one result whatever their number, exact resume, refusal where the batch cannot be kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import ConfigError, InterruptedRunError
from hmsa_core.io.process import StopRequest
from hmsa_core.runtime.ranks import start_ranks
from hmsa_core.spec import TrainSpec
from hmsa_core.training import run as train
from hmsa_core.training.trainer import Trainer
from tests.support.ranks import run_ranks
from tests.support.training import assert_same_run, context, log_of, student_spec, write_student_data

pytestmark = pytest.mark.chain  # ranks are processes of their own

# 3 epochs of 8 crops, batch 4: 6 steps of 2 passes on each of 2 ranks; fine labels only from step 4.
LAST = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student_data(tmp_path_factory.mktemp("data"))


def student(data: Path, work: Path, **changes: object) -> TrainSpec:
    return student_spec(data, work, global_batch=4, checkpoint_every=2, **changes)


def run_two(spec: TrainSpec, prepare: Callable[[int, StopRequest], None] = lambda rank, stop: None) -> list[int]:
    """Train on two ranks; `prepare` may patch what it likes in the forked process."""

    def target(rank: int) -> None:
        stop = StopRequest()
        prepare(rank, stop)
        ranks = start_ranks(spec.config.runtime)
        try:
            train.run(spec, context(spec, stop, ranks))
        except InterruptedRunError as error:
            os._exit(error.exit_code)
        ranks.barrier()
        ranks.stop()

    return run_ranks(2, target)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("whole")
    assert run_two(student(data, work)) == [0, 0]
    return work


def exit_at(step: int, *, rank: int | None = None) -> Callable[[int, StopRequest], None]:
    """The process is gone before this step: both, or only one rank (the other loses its peer)."""

    def prepare(me: int, stop: StopRequest) -> None:
        real = Trainer.run_step

        def run_step(self: Trainer, feed: object) -> object:
            if self.step == step and rank in (None, me):
                os._exit(9)
            return real(self, feed)  # type: ignore[arg-type]

        Trainer.run_step = run_step  # type: ignore[assignment,method-assign]

    return prepare


def stop_in(step: int, rank: int) -> Callable[[int, StopRequest], None]:
    """Only one rank receives the signal, in the first of its passes."""

    def prepare(me: int, stop: StopRequest) -> None:
        real = Trainer._pass

        def one_pass(self: Trainer, batch: object) -> None:
            real(self, batch)  # type: ignore[arg-type]
            if self.step == step and me == rank:
                stop.set()

        Trainer._pass = one_pass  # type: ignore[assignment,method-assign]

    return prepare


def exit_in_validation(me: int, stop: StopRequest) -> None:
    from hmsa_core.training.run import Validation

    def score(self: Validation, *args: object) -> object:
        os._exit(9)

    Validation._score = score  # type: ignore[assignment,method-assign]


def exit_while_saving(me: int, stop: StopRequest) -> None:
    from hmsa_core.io import atomic
    from tests.support.faults import FaultyOps

    if me == 0:
        real = Trainer.groups

        def groups(self: Trainer) -> object:
            if self.step == 4:
                atomic.ops = FaultyOps(8, None)  # ends the process at the 8th file operation
            return real(self)

        Trainer.groups = groups  # type: ignore[assignment,method-assign]


CASES: dict[str, Callable[[int, StopRequest], None]] = {
    "one rank is stopped between two passes": stop_in(3, 1),
    "both die in the middle of an epoch": exit_at(3),
    "one rank dies": exit_at(3, rank=1),
    "both die at the edge of an epoch, where fine labels alone begin": exit_at(4),
    "both die during validation": exit_in_validation,
    "the first rank dies while saving": exit_while_saving,
    "both die at the last step": exit_at(LAST - 1),
}


@pytest.mark.parametrize(
    "name", [name if i == 0 else pytest.param(name, marks=pytest.mark.fault) for i, name in enumerate(CASES)]
)
def test_two_ranks_resume_to_the_same_bytes(name: str, data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    spec = student(data, tmp_path / "work")
    status = run_two(spec, CASES[name])
    assert 0 not in status, status
    if "stopped" in name:
        assert status == [143, 143], "all ranks stop at the same step with the same status"
    assert not (spec.work / "model" / "model.json").exists()
    assert run_two(spec) == [0, 0]
    assert_same_run(spec.work, uninterrupted, LAST)


def freeze_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of a batch depend on how crops are grouped on ranks; without them ranks must not matter."""
    real = train.make_model

    def make_model(*args: object) -> object:
        model, fresh = real(*args)  # type: ignore[arg-type]
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, m=module: torch.nn.Module.train(m, False)  # type: ignore[method-assign,assignment,misc]
        return model, fresh

    monkeypatch.setattr(train, "make_model", make_model)


def test_two_ranks_give_what_one_rank_gives_at_the_same_global_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_batch_norm(monkeypatch)
    # At the other tests' rate of 0.05 rounding grows a hundredfold a step on some processors.
    one, two = (student(data, tmp_path / name, optimiser__lr=0.01) for name in ("one", "two"))
    train.run(one, context(one))
    assert run_two(two) == [0, 0]
    state = f"state/step-{LAST:08d}"
    # fp32, six steps: sums over crops are added in another order, nothing else differs. Worst relative L2 distance
    # of a tensor, measured: weights 1.4e-5, momentum 2.2e-5 (a sum of gradients that cancel).
    for name, tolerance in (("model", 1e-4), ("ema", 1e-4), ("optimiser", 2e-3)):
        a, b = (load_file(w.work / state / f"{name}.safetensors") for w in (one, two))
        for key in a:
            distance = (a[key].double() - b[key].double()).norm()
            assert distance <= tolerance * b[key].double().norm() + 1e-9, (name, key)
    for first, second in zip(log_of(one.work), log_of(two.work), strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if isinstance(value, float):
                assert value == pytest.approx(second[key], rel=1e-4, abs=1e-5), key
            elif key != "iou":
                assert value == second[key], key


def test_a_run_goes_on_with_another_number_of_ranks(data: Path, tmp_path: Path) -> None:
    spec = student(data, tmp_path / "work")
    assert 0 not in run_two(spec, exit_at(3))
    train.run(spec, context(spec))
    meta = read_json(spec.work / "model" / "model.json")
    assert meta["extra"]["steps"] == LAST
    assert meta["lineage"]["machine"]["ranks"] == 1


def test_ranks_that_cannot_keep_the_global_batch_are_refused_with_the_reason(data: Path, tmp_path: Path) -> None:
    from hmsa_core.runtime.ranks import Ranks

    spec = student(data, tmp_path / "work")
    three = Ranks(0, 3, 0, torch.device("cpu"))
    with pytest.raises(ConfigError, match="3 ranks x 1 crops a pass cannot keep the global batch of 4") as caught:
        train.run(spec, context(spec, ranks=three))
    assert "start 1, 2, 4 ranks" in caught.value.hint
