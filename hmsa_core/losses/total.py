"""The training loss: main + aux_weight x auxiliary + per_scale_weight x each single scale, with named parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from hmsa_core.io.errors import ConfigError
from hmsa_core.losses.cross_entropy import cross_entropy
from hmsa_core.losses.rmi import RmiIgnore, released_bce, rmi_loss, rmi_parts

__all__ = ["LossParts", "TotalLoss"]

_MAIN = ("rmi", "cross_entropy", "bce")
_AUX = ("cross_entropy", "released_bce", "released_rmi")


class Outputs(Protocol):
    """What the loss reads of a model's training output (`hmsa_core.models.ModelOutput`)."""

    @property
    def logits(self) -> Tensor:
        """Fused scores, N x C x H x W."""
        ...

    @property
    def aux_logits(self) -> Tensor:
        """Fused auxiliary scores, N x C x H x W."""
        ...

    @property
    def scale_logits(self) -> dict[float, Tensor]:
        """Scores of each scale on its own grid."""
        ...


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of; `parts` are detached, unweighted and meant for the log."""

    total: Tensor
    parts: dict[str, Tensor]


class TotalLoss(nn.Module):
    """Loss of the paper (section 4) and of the released recipe, chosen by names.

    Args:
        main: "rmi" (0.5 BCE + 0.5 RMI), "cross_entropy" or "bce" (the released BCE alone).
        aux: "cross_entropy" (paper), "released_bce" or "released_rmi".
        aux_weight: weight of the auxiliary loss (0.4).
        per_scale_weight: weight of the loss on each single scale, upsampled to the labels (released: 0.05);
            cross-entropy where the main loss is, else the released BCE.
        rmi_ignore: "released" or "masked", see `rmi_loss`.
        ignore_index: label that does not count.
    """

    def __init__(
        self,
        *,
        main: Literal["rmi", "cross_entropy", "bce"] = "rmi",
        aux: Literal["cross_entropy", "released_bce", "released_rmi"] = "cross_entropy",
        aux_weight: float = 0.4,
        per_scale_weight: float = 0.0,
        rmi_ignore: RmiIgnore = "released",
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if main not in _MAIN:
            raise ConfigError(f"loss main = {main!r}: choose one of {', '.join(_MAIN)}")
        if aux not in _AUX:
            raise ConfigError(f"loss aux = {aux!r}: choose one of {', '.join(_AUX)}")
        if rmi_ignore not in ("released", "masked"):
            raise ConfigError(f"loss rmi_ignore = {rmi_ignore!r}: choose released or masked")
        self.main = main
        self.aux = aux
        self.aux_weight = aux_weight
        self.per_scale_weight = per_scale_weight
        self.rmi_ignore: RmiIgnore = rmi_ignore
        self.ignore_index = ignore_index

    def forward(self, output: Outputs, labels: Tensor) -> LossParts:
        """Compute the loss of a model's training output for N x H x W integer labels."""
        parts: dict[str, Tensor] = {}
        total = self._main(output.logits, labels, parts)
        if self.aux_weight:
            parts["aux"] = self._aux(output.aux_logits, labels)
            total = total + self.aux_weight * parts["aux"]
        if self.per_scale_weight:
            for scale, logits in output.scale_logits.items():
                name = f"scale_{scale:g}"
                parts[name] = self._single_scale(logits, labels)
                total = total + self.per_scale_weight * parts[name]
        return LossParts(total, {name: part.detach() for name, part in parts.items()})

    def _main(self, logits: Tensor, labels: Tensor, parts: dict[str, Tensor]) -> Tensor:
        if self.main == "rmi":
            rmi = rmi_parts(logits, labels, ignore_index=self.ignore_index, rmi_ignore=self.rmi_ignore)
            parts.update(main=rmi.total, bce=rmi.cross_entropy, rmi=rmi.mutual_information)
        else:
            loss = cross_entropy if self.main == "cross_entropy" else released_bce
            parts["main"] = loss(logits, labels, ignore_index=self.ignore_index)
        return parts["main"]

    def _aux(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.aux == "released_rmi":
            return rmi_loss(logits, labels, ignore_index=self.ignore_index, rmi_ignore=self.rmi_ignore)
        loss = cross_entropy if self.aux == "cross_entropy" else released_bce
        return loss(logits, labels, ignore_index=self.ignore_index)

    def _single_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        size = (labels.shape[-2], labels.shape[-1])
        if tuple(logits.shape[-2:]) != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        loss = cross_entropy if self.main == "cross_entropy" else released_bce
        return loss(logits, labels, ignore_index=self.ignore_index)
