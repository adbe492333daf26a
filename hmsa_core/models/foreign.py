"""Read weight files of others without trusting them: torch pickles with tensors only, and safetensors.

Nothing in a file is run. Every way in which a file can be wrong ends in one CheckpointError line.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from hmsa_core.io.errors import CheckpointError, one_line
from hmsa_core.models.states import safetensors_from_bytes

__all__ = ["read_foreign"]

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a `.pth` or `.safetensors` file, told apart by content, on the CPU.

    Accepts a bare state dict or one under "state_dict", beside which other plain values may lie
    (optimiser, epoch, numpy scalars: the released checkpoints keep their mean IoU as one).

    Raises:
        CheckpointError: no file, empty, truncated or damaged, code in the pickle, no state dict in it.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder: give a weight file" if file.is_dir() else "there is no such file"
        raise CheckpointError(f"{file}: {what}")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file}: the file is empty (0 bytes): download it again")
    with file.open("rb") as stream:
        head = stream.read(9)
    if len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 40:
        return safetensors_from_bytes(str(file), file.read_bytes())
    return _state_dict(str(file), _read_pickle(file))


def _read_pickle(file: Path) -> object:
    try:
        # An open file, not a path: newer torch would choose the format by the name's ending.
        with file.open("rb") as stream, safe_globals(_PLAIN_NUMPY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on old pickle protocols; what fails is an error below
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = _GLOBAL.search(str(error))
        if asked is None:
            raise _damaged(file, error) from error
        raise CheckpointError(
            f"{file}: refused: the pickle asks for {asked[1]}, which is neither tensor nor plain value and could "
            "run code; nothing was run",
            hint="export a plain state dict (name -> tensor), or use safetensors",
        ) from error
    except (
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
        AssertionError,
        struct.error,
        ArithmeticError,
        MemoryError,
        ImportError,
    ) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> CheckpointError:
    detail = one_line(error).replace("This is an internal miniz error.", "").split(". ")[0] or type(error).__name__
    return CheckpointError(f"{file}: truncated or damaged, not a whole torch file ({detail}): download it again")


def _plain_scalar(dtype: np.dtype[Any], data: bytes) -> object:
    """Stand in for numpy's scalar constructor: numbers only, given back as Python's."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub":
        raise pickle.UnpicklingError("GLOBAL numpy.scalar of a dtype that is no number")
    return np.frombuffer(data, dtype=dtype, count=1)[0].item()


_NUMBERS = ("Float16", "Float32", "Float64", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
_PLAIN_NUMPY: list[Any] = [
    (_plain_scalar, "numpy.core.multiarray.scalar"),
    (_plain_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(getattr(np.dtypes, f"{name}DType") for name in _NUMBERS),
]


def _state_dict(where: str, content: object) -> dict[str, Tensor]:
    inner: object = content
    if isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(inner, Mapping) or not inner:
        raise CheckpointError(f"{where}: no state dict in it: expected names and tensors, or the same under state_dict")
    strange = [str(name) for name, value in inner.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(
            f"{where}: {len(strange)} entries of the state dict are no tensors ({', '.join(strange[:3])})"
        )
    return dict(inner)
