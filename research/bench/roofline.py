"""The least time that a GPU can take for labelling an image and for a training pass, counted without a GPU.

    python -m research.bench.roofline [--size 1024x2048] [--tflops 550] [--tb-s 2.6]

Operators run on meta tensors. Convolutions, matrix products and resizes are counted: FLOPs (two a multiply-accumulate)
and the bytes of operands and results in bf16. What lies between them (norms, ReLU, sums) is taken as fused. An
operator takes as long as its FLOPs or its bytes do, whichever takes longer; the bound is the sum. The two peaks are
what an H100 is believed to reach, not its data sheet: give those of your card.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hmsa_core.config import ModelConfig
from hmsa_core.models.layers.blocks import scaled_size
from hmsa_core.models.model import MultiScaleModel, build_empty

_aten = torch.ops.aten
LABEL_SCALES, TRAIN_SCALES = (0.5, 1.0, 2.0), (0.5, 1.0)
TFLOPS, TB_S = 550.0, 2.6  # believed of an H100
_BYTES = 2  # bf16


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of one operator or of many."""

    flops: float
    size_bytes: float
    bound_s: float

    def times(self, factor: float) -> Work:
        return Work(self.flops * factor, self.size_bytes * factor, self.bound_s * factor)

    def to_json(self) -> dict[str, float]:
        return {
            "tflop": round(self.flops / 1e12, 2),
            "gb": round(self.size_bytes / 1e9, 1),
            "bound_s": round(self.bound_s, 4),
        }


class Counting(TorchDispatchMode):
    """Adds up the work of its block."""

    def __init__(self, tflops: float = TFLOPS, tb_s: float = TB_S) -> None:
        super().__init__()
        self._peak, self._width = tflops * 1e12, tb_s * 1e12
        self.flops = self.size_bytes = self.bound_s = 0.0

    @property
    def work(self) -> Work:
        return Work(self.flops, self.size_bytes, self.bound_s)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flops = _FLOPS.get(func)
        if flops is not None:
            one = flops(args, result)
            size = _BYTES * (result.numel() + sum(a.numel() for a in args if isinstance(a, Tensor)))
            self.flops += one
            self.size_bytes += size
            self.bound_s += max(one / self._peak, size / self._width)
        return result


_FLOPS: dict[Any, Any] = {
    _aten.convolution.default: lambda args, out: 2 * out.numel() * args[1][0].numel(),
    _aten.mm.default: lambda args, out: 2 * out.numel() * args[0].shape[-1],
    _aten.bmm.default: lambda args, out: 2 * out.numel() * args[0].shape[-1],
    _aten.upsample_bilinear2d.default: lambda *_: 0,
}


def empty_model(trunk: str) -> MultiScaleModel:
    """A model without memory."""
    return build_empty(ModelConfig(trunk=trunk, head="released"), 19).eval()


def labelling(model: MultiScaleModel, size: tuple[int, int], tflops: float = TFLOPS, tb_s: float = TB_S) -> Work:
    """One image at {0.5, 1, 2} with its mirror image."""
    with Counting(tflops, tb_s) as count, torch.no_grad():
        for scale in LABEL_SCALES:
            pair = torch.empty(2, 3, *scaled_size(size, scale), device="meta")
            model.forward_scale(pair, attention=scale < max(LABEL_SCALES))
    return count.work


def training(model: MultiScaleModel, crop: tuple[int, int], tflops: float = TFLOPS, tb_s: float = TB_S) -> Work:
    """Forward and backward pass of one crop at {0.5, 1}: the backward pass is twice the forward one."""
    with Counting(tflops, tb_s) as count, torch.no_grad():
        for scale in TRAIN_SCALES:
            images = torch.empty(1, 3, *scaled_size(crop, scale), device="meta")
            model.forward_scale(images, attention=scale < max(TRAIN_SCALES))
    return count.work.times(3)


def share(work: Work, seconds: float) -> float:
    """Share of the bound that a measured time reaches: 1 = no faster is possible."""
    return round(work.bound_s / seconds, 3)


def add_peaks(parser: argparse.ArgumentParser) -> None:
    """Options for the card's peaks."""
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="dense bf16 TFLOP/s that the card reaches")
    parser.add_argument("--tb-s", type=float, default=TB_S, help="TB/s of its memory that it reaches")


def size_of(text: str) -> tuple[int, int]:
    """Height and width of "HEIGHTxWIDTH"."""
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default=(1024, 2048))
    parser.add_argument("--trunk", default="hrnet_w48")
    parser.add_argument("--quick", action="store_true", help="hrnet_micro")
    add_peaks(parser)
    args = parser.parse_args()
    model = empty_model("hrnet_micro" if args.quick else args.trunk)
    found = {
        what: count(model, args.size, args.tflops, args.tb_s).to_json()
        for what, count in (("label", labelling), ("train", training))
    }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
