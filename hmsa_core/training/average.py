"""Running average of the weights (EMA): what is saved at the end when `ema_decay` is not 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningAverage"]


class RunningAverage:
    """Exponential average of all floating point entries of a state dict, batch norm statistics included.

    The decay starts low, min(decay, (1 + t) / (10 + t)) after t updates, so that a short run does not
    carry its random start along (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._own = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.tensors: dict[str, Tensor] = {k: v.detach().clone() for k, v in self._own.items()}

    def update(self, updates: int) -> None:
        """Move towards the model; `updates` = number of updates before this one."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._own.values()), 1.0 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Put the average into a model of the same shape."""
        with torch.no_grad():
            state = model.state_dict()
            for name, tensor in self.tensors.items():
                state[name].copy_(tensor)
