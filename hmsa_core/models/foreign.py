"""Import of published weights: released checkpoints, bare HRNet trunks, timm's `hrnet_*`.

A file is never trusted. It is a torch pickle with tensors only, or safetensors, and no code in it is run. Every fault
of a file gives one CheckpointError line. Prefixes are stripped and classification heads dropped by rule, and then
every key must fit. A loader that takes only the common keys would silently load *nothing* when a prefix differs.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from hmsa_core import taxonomy
from hmsa_core.config import MEAN, SCALES, STD, ModelConfig
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import CheckpointError, one_line
from hmsa_core.models.checkpoint import check_state, safetensors_from_bytes, write_checkpoint
from hmsa_core.models.model import MultiScaleModel, build_empty, fill
from hmsa_core.models.trunks import make_trunk

# Errors of torch's reader for bytes that are no complete pickle of torch.
_DAMAGE: tuple[type[Exception], ...] = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)
_DAMAGE += (OSError, AssertionError, struct.error, ArithmeticError, MemoryError, ImportError)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Parts of a classification HRNet behind its trunk (key counts with published depth: 96, 21, 7, 2).
_CLASSIFICATION = ("incre_modules", "downsamp_modules", "final_layer", "classifier")
_TRUNK_PREFIXES = ("module.", "backbone.", "model.")
# Option -> its name in messages, and the tensors whose first dimension is the option.
_OCB = "ocr.ocr_distri_head.object_context_block"
_WIDTHS = {
    "num_classes": ("classes", ("ocr.cls_head.weight", "ocr.cls_head.bias", "ocr.aux_head.2.bias")),
    "ocr_mid": ("OCR channels", ("ocr.conv3x3_ocr.0.weight", "ocr.conv3x3_ocr.0.bias", "ocr.conv3x3_ocr.1.0.bias")),
    "ocr_key": ("OCR keys", (f"{_OCB}.f_pixel.0.weight", f"{_OCB}.f_pixel.1.0.bias", f"{_OCB}.f_down.1.0.bias")),
    "attention_channels": (
        "attention channels",
        ("scale_attn.conv0.weight", "scale_attn.bn0.bias", "scale_attn.bn1.bias"),
    ),
}


@dataclass(frozen=True)
class ImportReport:
    """Contents of an imported file."""

    source: str
    kind: str  # "trunk" for a bare trunk
    trunk: str
    num_classes: int
    tensors: int
    parameters: int
    source_sha256: str
    weights_sha256: str
    dropped: dict[str, int] = field(default_factory=dict)  # part -> number of keys that a rule drops

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        content = "trunk" if self.kind == "trunk" else "segmentation model"
        out = [
            f"{self.source}: {content}, {self.trunk}, kind {self.kind}{classes}",
            f"{self.tensors} tensors, {self.parameters:,} parameters, every key used",
        ]
        if self.dropped:
            out.append("left behind by rule: " + ", ".join(f"{k} ({n} keys)" for k, n in self.dropped.items()))
        return [*out, f"source sha256 {self.source_sha256}", f"weights sha256 {self.weights_sha256}"]


class _Recognised(NamedTuple):
    state: dict[str, Tensor]
    config: ModelConfig | None  # None: a bare trunk
    trunk: str
    num_classes: int
    dropped: dict[str, int]


def load_nvidia(path: str | Path) -> MultiScaleModel:
    """Load a released checkpoint ({"state_dict": ...}, with or without "module."), in evaluation mode.

    The shapes give width, class count and channels; without attention keys the kind is "single".

    Raises:
        CheckpointError: the file or any key does not fit; a bare trunk (import that one).
    """
    recognised = _recognise(str(path), read_foreign(path))
    if recognised.config is None:
        raise CheckpointError(
            f"{path}: holds only a trunk ({recognised.trunk}); run `autolabel import-checkpoint` and train from it"
        )
    model = build_empty(recognised.config, recognised.num_classes)
    fill(model, recognised.state)
    return model.eval()


def import_checkpoint(source: str | Path, target: str | Path) -> ImportReport:
    """Convert published weights to a checkpoint folder.

    A trunk alone becomes a checkpoint of kind "trunk", which `initialise_from` takes.

    Args:
        source: `.pth` or `.safetensors`.
        target: folder to write.

    Raises:
        CheckpointError: as `load_nvidia`; nothing is written then.
    """
    recognised = _recognise(str(source), read_foreign(source))
    digest = sha256_file(source)
    config, classes = recognised.config, recognised.num_classes
    meta: dict[str, Any] = {
        "kind": config.kind if config else "trunk",
        "trunk": recognised.trunk,
        "num_classes": classes,
        "options": config.record() if config else {},
        "class_table": _class_table(classes) if config else None,
        "inference": {"scales": SCALES, "flip": True, "mean": MEAN, "std": STD},
        "lineage": {"imported_from": Path(source).name, "source_sha256": digest, "images": "unknown"},
        "extra": {"dropped": recognised.dropped},
    }
    sha256 = write_checkpoint(Path(target), recognised.state, meta)
    return ImportReport(
        source=str(source),
        kind=meta["kind"],
        trunk=recognised.trunk,
        num_classes=classes,
        tensors=len(recognised.state),
        parameters=sum(t.numel() for key, t in recognised.state.items() if not key.endswith(_STATISTICS)),
        source_sha256=digest,
        weights_sha256=sha256,
        dropped=recognised.dropped,
    )


def read_trunk(path: str | Path, trunk: str) -> dict[str, Tensor]:
    """Read a published HRNet's trunk weights for the trunk of this name. CheckpointError: weights of another trunk."""
    recognised = _recognise(str(path), read_foreign(path))
    if recognised.trunk != trunk:
        raise CheckpointError(f"{path}: weights of trunk {recognised.trunk}, the model has {trunk}")
    prefix = "backbone."
    return {k.removeprefix(prefix): tensor for k, tensor in recognised.state.items() if k.startswith(prefix)}


def _class_table(num_classes: int) -> dict[str, Any] | None:
    """Return the class table of released checkpoints with this many classes; None for any other number."""
    tables = (taxonomy.cityscapes(), taxonomy.mapillary("v1.2"))
    return next((table.to_json() for table in tables if table.num_classes == num_classes), None)


def _recognise(where: str, raw: Mapping[str, Tensor]) -> _Recognised:
    state = _strip(raw, "module.")
    if any(key.startswith("ocr.") for key in state):
        return _segmentation(where, state)
    return _trunk(where, state)


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def _segmentation(where: str, state: dict[str, Tensor]) -> _Recognised:
    trunk = _trunk_name(where, state, "backbone.")
    has_attention = any(key.startswith("scale_attn.") for key in state)
    widths = {
        option: _width(where, state, *named)
        for option, named in _WIDTHS.items()
        if has_attention or option != "attention_channels"
    }
    classes = widths.pop("num_classes")
    kind = "hierarchical" if has_attention else "single"
    config = ModelConfig.checked({"kind": kind, "trunk": trunk, "head": "released", **widths}, where)
    fitted = _fitted(where, build_empty(config, classes), state)
    return _Recognised(fitted, config, trunk, classes, {})


def _trunk(where: str, state: dict[str, Tensor]) -> _Recognised:
    for prefix in _TRUNK_PREFIXES:
        state = _strip(state, prefix)
    dropped = Counter(part for key in state if (part := key.partition(".")[0]) in _CLASSIFICATION)
    kept = {key: tensor for key, tensor in state.items() if key.partition(".")[0] not in _CLASSIFICATION}
    trunk = _trunk_name(where, kept, "")
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": cast("nn.Module", make_trunk(trunk))})
    kept = {f"backbone.{key}": tensor for key, tensor in kept.items()}
    return _Recognised(_fitted(where, model, kept), None, trunk, 0, dict(dropped))


def _fitted(where: str, model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the model's order and precision (half precision weights become float32), all of which must fit."""
    expected = model.state_dict()
    check_state(where, expected, state)
    return {key: state[key].to(tensor.dtype).contiguous() for key, tensor in expected.items()}


def _trunk_name(where: str, state: Mapping[str, Tensor], prefix: str) -> str:
    keys = [f"{prefix}stage{stage}.0.branches.0.0.conv1.weight" for stage in (2, 3, 4)]
    return f"hrnet_w{_width(where, state, 'trunk channels', keys)}"


def _width(where: str, state: Mapping[str, Tensor], what: str, keys: Sequence[str]) -> int:
    """Return the channel count that most of these keys have as first dimension.

    One damaged key must not change the expected count; such a key is reported by itself.
    """
    found = Counter(int(state[key].shape[0]) for key in keys if key in state and state[key].ndim)
    if not found:
        raise CheckpointError(
            f"{where}: not a released HRNet: cannot tell its {what}, none of {', '.join(keys)} among its "
            f"{len(state)} keys ({', '.join(list(state)[:3])}, ...)"
        )
    return found.most_common(1)[0][0]


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a `.pth` or `.safetensors` file, distinguished by content, on the CPU.

    Accepts a bare state dict or one under "state_dict", next to which other plain values are allowed
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
        # An open file, not a path: newer torch chooses the format by the file name's ending.
        with file.open("rb") as stream, safe_globals(_PLAIN_NUMPY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on old pickle protocols; failures raise below
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        if match is None:
            raise _damaged(file, error) from error
        raise CheckpointError(
            f"{file}: refused: the pickle asks for {match[1]}, which is neither tensor nor plain value and could "
            "run code; nothing was run",
            hint="export a plain state dict (name -> tensor), or use safetensors",
        ) from error
    except _DAMAGE as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> CheckpointError:
    detail = one_line(error).replace("This is an internal miniz error.", "").split(". ")[0] or type(error).__name__
    return CheckpointError(f"{file}: truncated or damaged, not a whole torch file ({detail}): download it again")


def _plain_scalar(dtype: np.dtype[Any], data: bytes) -> object:
    """Stand in for numpy's scalar constructor: numbers only, returned as Python numbers."""
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
    found = [content[name] for name in _WRAPPERS if name in content] if isinstance(content, Mapping) else []
    inner: object = next((one for one in found if isinstance(one, Mapping)), content)
    if not isinstance(inner, Mapping) or not inner:
        raise CheckpointError(f"{where}: no state dict in it: expected names and tensors, or the same under state_dict")
    strange = [str(name) for name, value in inner.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(
            f"{where}: {len(strange)} entries of the state dict are no tensors ({', '.join(strange[:3])})"
        )
    return dict(inner)
