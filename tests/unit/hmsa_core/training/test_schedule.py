"""Learning rates against the numbers of the released code, and the rules of our own options."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.config import OptimiserConfig
from hmsa_core.training.recipe import LearningRate, poly, scaled_lr

REPO = Path(__file__).resolve().parents[4]
# The rate in force during an epoch, recorded from the released code's schedulers (`loss/optimizer.py`,
# stepped once after each epoch): schedule -> {epoch: rate}.
GOLDEN: dict[str, dict[str, float]] = json.loads((REPO / "tests/reference/lr_schedule.json").read_text())

FORMULAS: dict[str, Callable[[float], float]] = {
    "poly_exp1_lr0.01_175": lambda e: 0.01 * poly(e, 175, 1.0),
    "poly_exp2_lr0.01_175": lambda e: 0.01 * poly(e, 175, 2.0),
    "poly_exp2_lr0.005_175": lambda e: 0.005 * poly(e, 175, 2.0),
    "poly_exp1_lr0.02_200": lambda e: 0.02 * poly(e, 200, 1.0),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_rates_are_those_of_the_released_schedulers(name: str) -> None:
    for epoch, rate in GOLDEN[name].items():
        assert FORMULAS[name](int(epoch)) == pytest.approx(rate, rel=1e-12, abs=1e-18)


def test_the_full_set_of_reference_rates_is_covered(shared_reference: Path | None) -> None:
    if shared_reference is None:
        pytest.skip("the full reference set is not beside the checkout")
    full = json.loads((shared_reference / "lr_schedule.json").read_text())
    assert {k: v for k, v in full.items() if not k.startswith("_")} == GOLDEN


def test_the_epoch_schedule_is_constant_within_an_epoch_and_released_between_them() -> None:
    config = OptimiserConfig(lr=0.01, lr_scaling="none", poly_power=2.0, poly_unit="epoch")
    rate = LearningRate(config, global_batch=8, total_steps=1750, epochs=175)
    for epoch, expected in GOLDEN["poly_exp2_lr0.01_175"].items():
        if int(epoch) < 175:
            e = int(epoch)
            assert rate.at(e * 10, e) == rate.at(e * 10 + 9, e) == pytest.approx(expected, rel=1e-12)


@given(steps=st.integers(1, 40), epochs=st.integers(1, 20), power=st.floats(0.3, 4.0), warm=st.integers(0, 30))
def test_the_step_schedule_falls_all_the_time_after_warm_up_and_never_reaches_zero(
    steps: int, epochs: int, power: float, warm: int
) -> None:
    config = OptimiserConfig(poly_unit="step", poly_power=power, warmup_steps=warm)
    rate = LearningRate(config, global_batch=32, total_steps=steps * epochs, epochs=epochs)
    rates = [rate.at(step, step // steps) for step in range(steps * epochs)]
    assert all(r > 0 for r in rates)
    after = rates[max(0, warm - 1) :]
    assert all(later < earlier for earlier, later in itertools.pairwise(after))


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    config = OptimiserConfig(lr=1.0, lr_scaling="none", poly_unit="epoch", poly_power=1.0, warmup_steps=4)
    rate = LearningRate(config, global_batch=32, total_steps=80, epochs=10)
    assert [rate.at(step, 0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.005), ("sqrt", 0.01), ("none", 0.02)])
def test_the_rate_follows_the_batch_by_the_rule_that_was_asked_for(rule: str, expected: float) -> None:
    config = OptimiserConfig(lr=0.02, lr_reference_batch=32, lr_scaling=rule)  # type: ignore[arg-type]
    assert math.isclose(scaled_lr(config, 8), expected)
