"""Inputs and weights by formula, and the recorded numbers of model and losses.

The formulas are those of README.md next to this file. Two sets of numbers have one form: the thinned
slices in this folder, which every clone has, and the full set in ../shared/reference next to the checkout.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
FULL = HERE.parents[2] / "shared" / "reference"
THIN_VALUES = 1000  # about so many values of each array are kept in this folder

_NPZ = {"model_forward": "model_forward.npz", "loss_rmi": "rmi.npz"}


def pcg(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def image(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normals that stand for an already normalised image."""
    return torch.from_numpy(pcg(seed).standard_normal(shape).astype(np.float32))


def blocky_labels(seed: int, n: int, h: int, w: int, classes: int, ignore: int = 255) -> np.ndarray:
    """Random classes in 8 x 8 blocks, a tenth of the pixels ignored."""
    rng = pcg(seed)
    blocks = rng.integers(0, classes, (n, -(-h // 8), -(-w // 8)))
    labels = np.repeat(np.repeat(blocks, 8, axis=1), 8, axis=2)[:, :h, :w].copy()
    labels[rng.random((n, h, w)) < 0.1] = ignore
    return labels


_OBJECT_CONTEXT = "ocr.ocr_distri_head.object_context_block."
_GAINS = {
    "ocr.cls_head.weight": 6.0,
    "ocr.aux_head.2.weight": 3.0,
    "scale_attn.conv2.weight": 4.0,
    _OBJECT_CONTEXT + "f_pixel.2.weight": 4.0,
    _OBJECT_CONTEXT + "f_object.2.weight": 4.0,
    _OBJECT_CONTEXT + "f_up.0.weight": 2.0,
}


def _batch_norm_gain(key: str) -> float:
    if ".fuse_layers." in key:
        return 0.2
    ends_block = key.endswith(".bn3.weight") or (".branches." in key and key.endswith(".bn2.weight"))
    return 0.3 if ends_block else 1.0


def weight(key: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """One entry of the deterministic state dict: a function of its name, shape and a salt."""
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    seed = int.from_bytes(hashlib.sha256((salt + key).encode()).digest()[:8], "little")
    n = pcg(seed).standard_normal(shape)
    if leaf in ("running_mean", "bias"):
        value = 0.1 * n
    elif leaf == "running_var":
        value = 1.0 + 0.1 * np.abs(n)
    elif len(shape) == 1:
        value = _batch_norm_gain(key) * (1.0 + 0.1 * n)
    else:
        n -= n.mean(axis=(1, 2, 3), keepdims=True)
        value = _GAINS.get(key, 1.0) * np.sqrt(2.0 / np.prod(shape[1:])) * n
    return value.astype(np.float32)


def fill(state: dict[str, torch.Tensor], salt: str = "") -> dict[str, torch.Tensor]:
    """Values for every entry of a state dict (its tensors only tell the shapes)."""
    return {key: torch.from_numpy(weight(key, tuple(t.shape), salt)) for key, t in state.items()}


# ---------------------------------------------------------------------------------- recorded numbers


@cache
def record(name: str) -> dict[str, Any]:
    """One of the JSON files of this folder."""
    return json.loads((HERE / f"{name}.json").read_text())


@cache
def state_dict_keys() -> dict[str, Any]:
    """Names, shapes and dtypes of the released state dicts, and the multiply-accumulates."""
    return json.loads(gzip.decompress((HERE / "model_keys.json.gz").read_bytes()))


@cache
def _arrays(name: str, full: bool) -> dict[str, np.ndarray]:
    path = FULL / _NPZ[name] if full else HERE / f"{name}.npz"
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def array_names(name: str) -> list[str]:
    return sorted(_arrays(name, full=False))


def thin(values: np.ndarray) -> np.ndarray:
    """Every n-th value, n odd so that the picks move through rows and channels."""
    step = max(1, values.size // THIN_VALUES) | 1
    return np.ascontiguousarray(values.reshape(-1)[::step])


def cut(array: np.ndarray, text: str) -> np.ndarray:
    """Apply a slice that is written as text, "[:, :, ::6, ::6]"."""
    parts = []
    for part in text.strip("[]").split(","):
        numbers = [int(n) if n.strip() else None for n in part.split(":")]
        parts.append(slice(*numbers))
    return array[tuple(parts)]


def compare(name: str, key: str, slice_text: str, ours: np.ndarray, check: Callable[..., None]) -> None:
    """Call `check(ours, recorded)` on the thinned slice, and on the full slice where it is at hand."""
    mine = cut(ours, slice_text)
    recorded = _arrays(name, full=False)[key]
    check(mine if recorded.shape == mine.shape else thin(mine), recorded)
    if FULL.is_dir():
        check(mine, _arrays(name, full=True)[key])


def relative_l2(ours: np.ndarray, recorded: np.ndarray) -> float:
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    scale = float(np.linalg.norm(recorded))
    distance = float(np.linalg.norm(ours - recorded))
    return distance if scale == 0.0 else distance / scale
