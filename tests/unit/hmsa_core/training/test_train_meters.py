"""Figures of a run: what is summed, when it is read late, and what a given-up step leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmsa_core.runtime.ranks import Ranks
from hmsa_core.training.figures import Meters


def meters(device: str = "cpu") -> Meters:
    # The device only decides whether reports are read one pass late; no GPU is touched.
    return Meters(Ranks(0, 1, torch.device(device)), ("images", "class:0"))


def put(m: Meters, step: int, loss: float, images: int = 2) -> None:
    m.put(
        step, {"loss": torch.tensor(loss), "aux": torch.tensor(loss / 2)}, np.array([images, 10.0]), (f"image-{step}",)
    )


def feed(m: Meters, losses: list[float], first: int = 0) -> None:
    for step, loss in enumerate(losses, first):
        put(m, step, loss)
        assert not m.exchange(stop=False).stop
        m.fold()


def test_means_are_over_passes_and_counts_are_sums() -> None:
    m = meters()
    feed(m, [1.0, 2.0, 6.0])
    means, counts = m.read("window")
    assert means == {"aux": 1.5, "loss": 3.0}
    assert counts == {"images": 6, "class:0": 30}
    assert m.read("window")[1]["images"] == 0, "reading starts the window anew"
    assert m.read("epoch")[0]["loss"] == 3.0, "the epoch goes on"


def test_a_stop_request_reaches_everybody() -> None:
    m = meters()
    put(m, 0, 1.0)
    assert m.exchange(stop=True).stop


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_reported_with_its_images(bad: float) -> None:
    m = meters()
    put(m, 4, bad)
    assert m.exchange(stop=False).failed
    assert m.failures == [(4, ("image-4",))]


def test_on_a_gpu_a_pass_is_read_one_pass_late_and_nothing_is_lost() -> None:
    m = meters("cuda")
    put(m, 0, float("nan"))
    assert not m.exchange(stop=False).failed
    put(m, 1, 1.0)
    assert m.exchange(stop=False).failed
    assert m.failures == [(0, ("image-0",))]
    m.flush()
    m.fold()
    assert m.read("window")[1]["images"] == 4


def test_a_step_that_is_given_up_leaves_no_trace() -> None:
    m = meters("cuda")
    put(m, 0, 1.0)
    m.exchange(stop=False)
    put(m, 1, 100.0)
    m.exchange(stop=True)
    m.flush()
    m.forget(1)
    m.fold()
    assert m.read("window") == ({"aux": 0.5, "loss": 1.0}, {"images": 2, "class:0": 10})


def test_saved_sums_go_on_bit_for_bit() -> None:
    whole, first, second = meters(), meters(), meters()
    losses = [0.1 * i + 1e-9 for i in range(7)]
    feed(whole, losses)
    feed(first, losses[:3])
    second.load(first.state())
    feed(second, losses[3:], 3)
    assert second.state() == whole.state()
