r"""Trunks: each file of this folder is one family of trunks and is known by being here.

A trunk file states its names as plain literals, which are read without importing the file: settings are checked where
torch is not loaded. It builds a trunk in a function `build`. `deeplabv3.py` is a short example.

    NAMES = ("hrnet_w18", "hrnet_w32")    # what a user writes as `trunk`
    PATTERN = r"hrnet_w[1-9]\d{0,2}"      # optional: further names that `build` takes

    def build(name: str) -> Trunk: ...    # an nn.Module with fresh weights; nothing is downloaded

`build` takes `drop_path`, too, where the family offers stochastic depth.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from hmsa_core.io.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Trunk", "Widths", "make_trunk", "trunk_fault"]


@dataclass(frozen=True)
class Widths:
    """What stands on a trunk where the model's options do not say."""

    context: Literal["ocr", "aspp", "psp", "none"] = "ocr"
    ocr_mid: int = 512  # channels; these are the released ones
    ocr_key: int = 256
    attention_channels: int = 256


class Trunk(Protocol):
    """An nn.Module: B x 3 x H x W images -> feature maps, the finest first.

    Attributes:
        channels: of each map.
        strides: of each map: map i is B x channels[i] x ceil(H / strides[i]) x ceil(W / strides[i]).
        widths: defaults of what stands on this trunk.
        body: the part that published weights fill; a trunk without this attribute is filled whole.
        checkpointing: set it to recompute activations in the backward pass; a trunk that cannot has no such attribute.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    widths: Widths

    def __call__(self, images: Tensor, /) -> list[Tensor]:
        """Compute the feature maps."""
        ...


def trunk_fault(name: str) -> str:
    """Say why a trunk's name is unknown; empty for a known one. No trunk file is imported."""
    if _family(name):
        return ""
    known = [*(name for names, _ in _declared().values() for name in names), "timm:NAME"]
    return f"unknown trunk {name!r}: " + did_you_mean(name, known, f"choose one of {', '.join(known)}")


def make_trunk(name: str, *, drop_path: float = 0.0) -> Trunk:
    """Build a trunk by name with fresh weights. ConfigError: an unknown name, or no stochastic depth in its family."""
    if fault := trunk_fault(name):
        raise ConfigError(fault)
    build = import_module(f"{__name__}.{_family(name)}").build
    options = {"drop_path": drop_path} if drop_path else {}
    if options and "drop_path" not in signature(build).parameters:
        raise ConfigError(f"drop_path is not offered for the trunk {name}")
    return cast("Trunk", build(name, **options))


def _family(name: str) -> str:
    for family, (names, pattern) in _declared().items():
        if name in names or (pattern and re.fullmatch(pattern, name)):
            return family
    return ""


@cache
def _declared() -> dict[str, tuple[tuple[str, ...], str]]:
    """NAMES and PATTERN of each trunk file, by the file's stem."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        literals = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("NAMES", "PATTERN")
        }
        found[path.stem] = (tuple(literals["NAMES"]), str(literals.get("PATTERN", "")))
    return found
