r"""Trunks: each file of this folder is one family of trunks and needs no registration.

A trunk file states its names as plain literals, which are read without importing the file: settings are checked where
torch is not loaded. It builds a trunk in a function `build`. `deeplabv3.py` is a short example.

    NAMES = ("hrnet_w18", "hrnet_w32")    # what a user writes as `trunk`
    PATTERN = r"hrnet_w[1-9]\d{0,2}"      # optional: further names that `build` takes

    def build(name: str) -> Trunk: ...    # an nn.Module with fresh weights; nothing is downloaded

`build` takes `drop_path`, too, where the family offers stochastic depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Literal, Protocol, cast

from hmsa_core.config import trunk_family, trunk_fault
from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Trunk", "Widths", "make_trunk"]


@dataclass(frozen=True)
class Widths:
    """Default widths of the heads on a trunk, for options that the model's settings leave open."""

    context: Literal["ocr", "aspp", "psp", "none"] = "ocr"
    ocr_mid: int = 512  # channels, as released
    ocr_key: int = 256
    attention_channels: int = 256


class Trunk(Protocol):
    """An nn.Module: B x 3 x H x W images -> feature maps, the finest first.

    Attributes:
        channels: channels of each map.
        strides: stride of each map: map i is B x channels[i] x ceil(H / strides[i]) x ceil(W / strides[i]).
        widths: default widths of the heads on this trunk.
        body: the part that published weights fill; without this attribute they fill the whole trunk.
        checkpointing: set it to recompute activations in the backward pass; trunks without support lack this attribute.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    widths: Widths

    def __call__(self, images: Tensor, /) -> list[Tensor]:
        """Compute the feature maps."""
        ...


def make_trunk(name: str, *, drop_path: float = 0.0) -> Trunk:
    """Build a trunk by name with fresh weights. ConfigError: an unknown name, or no stochastic depth in its family."""
    if fault := trunk_fault(name):
        raise ConfigError(fault)
    build = import_module(f"{__name__}.{trunk_family(name)}").build
    options = {"drop_path": drop_path} if drop_path else {}
    if options and "drop_path" not in signature(build).parameters:
        raise ConfigError(f"drop_path is not offered for the trunk {name}")
    return cast("Trunk", build(name, **options))
