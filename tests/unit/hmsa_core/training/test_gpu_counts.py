"""What a training pass of the paper's network asks of a GPU and of the other ranks, counted on meta tensors.

The counts do not depend on the size of the crop (but for bytes), so the passes here are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmsa_core.config import TrainConfig
from hmsa_core.io.process import StopRequest
from hmsa_core.models import MultiScaleModel, build
from hmsa_core.models.layers.batch_norm import synchronise
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.training.data import PassBatch, Timeline
from hmsa_core.training.trainer import Trainer
from tests.support.counting import Counting, ranks_that_are_not_there
from tests.support.training import Plan

pytestmark = pytest.mark.long

CROP = (64, 128)
GPU = Ranks(0, 1, torch.device("meta"), norm_ranks=8)


def network(trunk: str, **options: Any) -> MultiScaleModel:
    with torch.device("meta"):
        model = build("hierarchical", trunk=trunk, head="released", **options).train()
    return synchronise(model).to(memory_format=torch.channels_last)  # type: ignore[return-value,call-overload]


def batch(crops: int, *, weighs: bool) -> PassBatch:
    images, labels = (torch.zeros(crops, *CROP, *more, dtype=torch.uint8) for more in ((3,), ()))
    return PassBatch(images, labels, tuple(map(str, range(crops))), np.zeros(21), labels == 1 if weighs else None)


def counted(trunk: str, **changes: Any) -> Counting:
    """The second pass of a trainer, and its update."""
    checkpointing = changes.pop("activation_checkpointing", False)
    weighs = "pseudo" in changes
    config = TrainConfig.model_validate(
        {"crop": CROP, "global_batch": 2, "batch_per_rank": 2, "runtime": {"precision": "fp32"}, **changes}
    )
    with ranks_that_are_not_there(8):
        model = network(trunk, activation_checkpointing=checkpointing)
        trainer = Trainer(config, model, GPU, timeline=Timeline(Plan(100), 2), stop=StopRequest())  # type: ignore[arg-type]
        for group in trainer.optimiser.param_groups:
            group["fused"] = False  # meta tensors lack the fused kernel
        for _ in range(2):
            with Counting() as counting:
                assert trainer._forward_backward(batch(2, weighs=weighs)) is not None
                trainer._update()
    return counting


@pytest.fixture(scope="module")
def w48() -> Iterator[Counting]:
    return counted("hrnet_w48")


def test_a_pass_of_w48_never_waits_for_the_gpu(w48: Counting) -> None:
    # On a GPU one wait is added, for the loss of the pass before (`Meters`): below the 5 that are allowed.
    assert not w48.waits
    assert w48.uploaded == 4 * 2 * CROP[0] * CROP[1], "a pixel is three bytes and its label"


def test_a_pass_of_w48_sends_212_messages_where_each_norm_alone_would_send_1260(w48: Counting) -> None:
    assert w48.messages == {"_allgather_base_": 106, "allreduce_": 106}


def longest_chain(output: Tensor) -> tuple[int, int]:
    """Most batch norms that one output depends on in a row, and all of them (running the network on one rank)."""
    found: dict[Any, int] = {}
    todo = [output.grad_fn]
    while todo:
        node = todo[-1]
        before = [n for n, _ in node.next_functions if n is not None]  # type: ignore[union-attr]
        missing = [n for n in before if n not in found]
        if missing:
            todo += missing
            continue
        todo.pop()
        found[node] = max((found[n] for n in before), default=0) + ("BatchNorm" in node.name())  # type: ignore[union-attr]
    return found[output.grad_fn], sum("BatchNorm" in node.name() for node in found)


def test_no_order_of_work_could_do_with_fewer_than_200_messages() -> None:
    """A norm needs the statistics of its input, which needs the norms before it; there, and back for the gradients."""
    with torch.device("meta"):
        model = build("hierarchical", head="released").train()
    deepest, norms = longest_chain(model(torch.empty(1, 3, *CROP, device="meta")).logits)
    assert (deepest, norms) == (100, 630)


@pytest.mark.parametrize(
    "changes",
    [
        {"pseudo": {"human_weight": 2.0}, "optimiser": {"clip_norm": 1.0}, "loss": {"rmi_ignore": "masked"}},
        {"loss": {"main": "cross_entropy", "aux": "released_bce", "per_scale_weight": 0.05}, "ema_decay": 0.9},
    ],
    ids=str,
)
def test_no_setting_makes_a_pass_wait(changes: dict[str, Any]) -> None:
    assert not counted("hrnet_micro", **changes).waits


def test_recomputing_activations_sends_no_statistics_again() -> None:
    plain = counted("hrnet_micro")
    again = counted("hrnet_micro", activation_checkpointing=True)
    assert not again.waits
    # Scales are recomputed on their own, so their blocks do not share messages; but none is sent for the second time.
    assert again.messages["_allgather_base_"] == again.messages["allreduce_"]
    assert again.messages["allreduce_"] < 2 * plain.messages["allreduce_"]
