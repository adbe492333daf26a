"""One W48 with the reference weights for all tests of a process: making it takes seconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmsa_core.config import ModelConfig
from hmsa_core.models.model import MultiScaleModel, build_empty
from tests.reference import golden


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def filled_model(kind: str, **options: Any) -> MultiScaleModel:
    """HRNet-W48 with the reference's weights by formula, in evaluation mode."""
    model = build_empty(ModelConfig(kind=kind, head="released", **options), 19)
    model.load_state_dict(golden.fill(model.state_dict()), assign=True)
    return model.eval()


@pytest.fixture(scope="session")
def w48() -> MultiScaleModel:
    """The released network: HRNet-W48, OCR, attention head, 19 classes."""
    return filled_model("hierarchical", top_attention="released")
