"""Learning rates against the numbers of the released code, and the rules of our own options."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.training.recipe import learning_rate
from tests.reference import golden
from tests.support.training import config

# The rate in force during an epoch, recorded from the released code's schedulers (`loss/optimizer.py`,
# stepped once after each epoch): schedule -> {epoch: rate}.
GOLDEN: dict[str, dict[str, float]] = json.loads((golden.HERE / "lr_schedule.json").read_text())


def rate(
    step: int, epoch: int, *, total_steps: int = 100, epochs: int = 10, batch: int = 32, **options: object
) -> float:
    optimiser = {f"optimiser__{name}": value for name, value in options.items()}
    found = config(epochs=epochs, global_batch=batch, **optimiser)
    return learning_rate(found, step=step, epoch=epoch, total_steps=total_steps)


@pytest.mark.parametrize(
    ("name", "lr", "power"),
    [
        ("poly_exp1_lr0.01_175", 0.01, 1.0),
        ("poly_exp2_lr0.01_175", 0.01, 2.0),
        ("poly_exp2_lr0.005_175", 0.005, 2.0),
        ("poly_exp1_lr0.02_200", 0.02, 1.0),
    ],
)
def test_rates_are_those_of_the_released_scheduler_and_constant_within_an_epoch(
    name: str, lr: float, power: float
) -> None:
    options = {"epochs": int(name[-3:]), "lr": lr, "poly_power": power, "poly_unit": "epoch"}
    for epoch, expected in GOLDEN[name].items():
        e = int(epoch)
        assert rate(e * 10, e, **options) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        assert rate(e * 10, e, **options) == rate(e * 10 + 9, e, **options)


@pytest.mark.skipif(not golden.FULL.is_dir(), reason="the full reference set is not next to the checkout")
def test_the_full_set_of_reference_rates_is_covered() -> None:
    full = json.loads((golden.FULL / "lr_schedule.json").read_text())
    assert {k: v for k, v in full.items() if not k.startswith("_")} == GOLDEN


@given(steps=st.integers(1, 40), epochs=st.integers(1, 20), power=st.floats(0.3, 4.0), warm=st.integers(0, 30))
def test_the_step_schedule_falls_all_the_time_after_warm_up_and_never_reaches_zero(
    steps: int, epochs: int, power: float, warm: int
) -> None:
    total = steps * epochs
    options = {"epochs": epochs, "poly_unit": "step", "poly_power": power, "warmup_steps": warm}
    rates = [rate(step, step // steps, total_steps=total, **options) for step in range(total)]
    assert all(r > 0 for r in rates)
    after = rates[max(0, warm - 1) :]
    assert all(later < earlier for earlier, later in itertools.pairwise(after))


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    rates = [rate(step, 0, lr=1.0, poly_unit="epoch", warmup_steps=4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.005), ("sqrt", 0.01), ("none", 0.02)])
def test_the_rate_follows_the_batch_by_the_rule_that_was_asked_for(rule: str, expected: float) -> None:
    assert math.isclose(rate(0, 0, batch=8, lr=0.02, lr_scaling=rule), expected)
