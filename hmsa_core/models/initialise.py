"""Start a training from another checkpoint: what fits is loaded, what does not is re-initialised and named."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from hmsa_core.io.errors import CheckpointError
from hmsa_core.models.checkpoint import read_meta, read_weights, unwrap
from hmsa_core.models.states import check_finite, compare_states

__all__ = ["initialise_from"]

_log = logging.getLogger(__name__)

# Heads that depend on the class count or may be absent from a parent; longest prefix first.
_HEADS = ("ocr.cls_head", "ocr.aux_head.2", "scale_attn")


def initialise_from(model: nn.Module, checkpoint: str | Path) -> list[str]:
    """Load a parent's weights into `model`, in place.

    Args:
        model: made by `build` (its fresh weights stay where the parent has nothing that fits).
        checkpoint: one of our checkpoint folders, also one that holds only a trunk.

    Returns:
        Names of the parts that keep their fresh weights, each with the reason, for the log:
        ["ocr.cls_head (65 classes in the checkpoint, 19 here)", "scale_attn (not in the checkpoint)"].

    Raises:
        CheckpointError: the trunk, or a part that does not depend on the classes, does not fit.
    """
    bare = unwrap(model)
    meta = read_meta(checkpoint)
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    state = read_weights(folder, meta)
    check_finite(str(folder), state)
    if meta["trunk"] != bare.options.trunk:
        raise CheckpointError(f"{folder}: trunk {meta['trunk']}, the model has {bare.options.trunk}")
    heads = ("ocr", "scale_attn") if meta["kind"] == "trunk" else _HEADS
    own = bare.state_dict()
    fresh = [head for head in heads if _differs(own, state, head)]
    named = [_reason(head, meta, state, bare.num_classes) for head in fresh if any(_belongs(k, head) for k in own)]
    for head in fresh:
        for key in [key for key in state if _belongs(key, head)]:
            del state[key]
    expected = {key: t for key, t in own.items() if not any(_belongs(key, head) for head in fresh)}
    difference = compare_states(expected, state)
    if difference:
        raise CheckpointError(f"{folder}: does not fit the model: {difference.describe()}")
    bare.load_state_dict(state, strict=False)
    _log.info("initialised %d tensors from %s; fresh: %s", len(state), folder, ", ".join(named) or "nothing")
    return named


def _belongs(key: str, part: str) -> bool:
    return key.startswith(part + ".")


def _differs(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], head: str) -> bool:
    shapes = {key: tuple(t.shape) for key, t in own.items() if _belongs(key, head)}
    return shapes != {key: tuple(t.shape) for key, t in state.items() if _belongs(key, head)}


def _reason(head: str, meta: dict[str, object], state: dict[str, torch.Tensor], classes: int) -> str:
    if not any(_belongs(key, head) for key in state):
        return f"{head} (not in the checkpoint)"
    if head != "scale_attn" and meta["num_classes"] != classes:
        return f"{head} ({meta['num_classes']} classes in the checkpoint, {classes} here)"
    return f"{head} (another form in the checkpoint)"
