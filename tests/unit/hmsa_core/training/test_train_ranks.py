"""Two ranks: one result whatever their number, exact resume, refusal where the batch cannot be kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file

from hmsa_core.io import atomic
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import ConfigError, InterruptedRunError
from hmsa_core.io.process import StopRequest
from hmsa_core.runtime.ranks import Ranks, start_ranks
from hmsa_core.spec import TrainSpec
from hmsa_core.training import run as train
from hmsa_core.training.trainer import Trainer
from tests.support.faults import FaultyOps
from tests.support.interruptions import Interruption, killed_after, killed_in_validation, stopped_in
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


def run_two(
    spec: TrainSpec, interruption: Interruption = lambda patch, stop: None, *, rank: int | None = None
) -> list[int]:
    """Train on two ranks, of which both or one are interrupted; patches stay in the forked processes."""

    def target(me: int) -> None:
        stop = StopRequest()
        if rank in (None, me):
            interruption(pytest.MonkeyPatch(), stop)
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


def leave() -> NoReturn:
    os._exit(9)


def exit_while_saving(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    real = Trainer.groups

    def groups(self: Trainer) -> object:
        if self.step == 4:
            patch.setattr(atomic, "ops", FaultyOps(8, None))  # ends the process at the 8th file operation
        return real(self)

    patch.setattr(Trainer, "groups", groups)


CASES: dict[str, tuple[Interruption, int | None]] = {
    "one rank is stopped between two passes": (stopped_in(3, between_passes=True), 1),
    "both die in the middle of an epoch": (killed_after(3, leave), None),
    "one rank dies": (killed_after(3, leave), 1),
    "both die at the edge of an epoch, where fine labels alone begin": (killed_after(4, leave), None),
    "both die during validation": (killed_in_validation(leave), None),
    "the first rank dies while saving": (exit_while_saving, 0),
    "both die at the last step": (killed_after(LAST - 1, leave), None),
}


@pytest.mark.parametrize(
    "name", [name if i == 0 else pytest.param(name, marks=pytest.mark.fault) for i, name in enumerate(CASES)]
)
def test_two_ranks_resume_to_the_same_bytes(name: str, data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    spec = student(data, tmp_path / "work")
    interruption, rank = CASES[name]
    status = run_two(spec, interruption, rank=rank)
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


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two tensors, as a part of the second one's L2 norm."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-7)).item()


def test_two_ranks_give_what_one_rank_gives_at_the_same_global_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_batch_norm(monkeypatch)
    # At the other tests' rate of 0.05 rounding grows a hundredfold a step on some processors.
    one, two = (student(data, tmp_path / name, optimiser__lr=0.01) for name in ("one", "two"))
    train.run(one, context(one))
    assert run_two(two) == [0, 0]
    state = f"state/step-{LAST:08d}"
    # fp32, six steps: sums over crops are added in another order, nothing else differs. Measured at five settings of
    # instruction sets: a tensor 5.8e-4 (sums that cancel, or that start at zero), all weights together 3e-8, all
    # momentum 4e-5. An average of gradients that is 0.01 % too large moves a bias by 7e-3.
    for name, together in (("model", 1e-6), ("ema", 1e-6), ("optimiser", 2e-4)):
        a, b = (load_file(w.work / state / f"{name}.safetensors") for w in (one, two))
        for key in a:
            assert distance(a[key], b[key]) <= 2e-3, (name, key)
        assert distance(*(torch.cat([part.flatten() for part in parts.values()]) for parts in (a, b))) <= together, name
    for first, second in zip(log_of(one.work), log_of(two.work), strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if isinstance(value, float):
                assert value == pytest.approx(second[key], rel=1e-4, abs=1e-5), key
            elif key != "iou":
                assert value == second[key], key


def test_a_run_goes_on_with_another_number_of_ranks(data: Path, tmp_path: Path) -> None:
    spec = student(data, tmp_path / "work")
    assert 0 not in run_two(spec, killed_after(3, leave))
    train.run(spec, context(spec))
    meta = read_json(spec.work / "model" / "model.json")
    assert meta["extra"]["steps"] == LAST
    assert meta["lineage"]["machine"]["ranks"] == 1


def test_ranks_that_cannot_keep_the_global_batch_are_refused_with_the_reason(data: Path, tmp_path: Path) -> None:
    spec = student(data, tmp_path / "work")
    three = Ranks(0, 3, torch.device("cpu"))
    with pytest.raises(ConfigError, match="3 ranks x 1 crops a pass cannot keep the global batch of 4") as caught:
        train.run(spec, context(spec, ranks=three))
    assert "start 1, 2, 4 ranks" in caught.value.hint
