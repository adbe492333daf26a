"""The checkpoint folder: `model.safetensors` (tensors, never pickle) and `model.json` (the commit point).

The JSON is written last. It holds the model's options, its origin (`lineage`), the intended inference
(`inference`), a digest of itself and the SHA-256 of the weight file, which is checked before a tensor is used.
The weight file depends on names, shapes and values only. No torch at import: `read_meta` needs none.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.config import ModelConfig
from hmsa_core.io import sealed
from hmsa_core.io.atomic import sha256_bytes, write_bytes
from hmsa_core.io.errors import CheckpointError, ConfigError, IntegrityError, one_line
from hmsa_core.io.trees import new_tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from hmsa_core.models.model import MultiScaleModel

_log = logging.getLogger(__name__)

FORMAT = "hmsa-model"
VERSION = 1
WEIGHTS = "model.safetensors"
_MOST_CLASSES = 254  # 255 is ignored
META = "model.json"
# Heads that depend on the class count or may be absent from a parent; longest prefix first.
_HEADS = ("ocr.cls_head", "ocr.aux_head.2", "scale_attn")
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "trunk": str,
    "num_classes": int,
    "options": dict,
    "weights_sha256": str,
    "lineage": dict,
}


def save(
    model: nn.Module,
    path: str | Path,
    *,
    class_table: Mapping[str, Any] | None,
    lineage: Mapping[str, Any],
    inference: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write a model of `build` into the folder `path` and return the SHA-256 of its weights.

    Args:
        model: may be wrapped by DistributedDataParallel or torch.compile.
        path: the checkpoint folder; an existing checkpoint is replaced.
        class_table: ClassTable.to_json() of the classes, or None where the classes have no names.
        lineage: any JSON object; the caller records unknown facts as unknown.
        inference: intended inference: scales, flip, mean, std.
        extra: any JSON object.
    """
    bare = unwrap(model)
    meta = {
        "kind": bare.kind,
        "trunk": bare.config.trunk,
        "num_classes": bare.num_classes,
        "options": bare.config.record(),
        "class_table": class_table,
        "lineage": lineage,
        "inference": inference,
        "extra": extra or {},
    }
    return write_checkpoint(Path(path), bare.state_dict(), meta)


def write_checkpoint(folder: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and JSON; at any time the folder holds the old checkpoint or the new one.

    Other files in the folder stay; in such a folder a kill may leave no checkpoint (never a mixed one).
    """
    from safetensors.torch import save as to_bytes

    data = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    value = {
        **meta,
        "format": FORMAT,
        "version": VERSION,
        "weights_sha256": sha256_bytes(data),
        "tensors": len(state),
        "values": sum(tensor.numel() for tensor in state.values()),
    }
    shared = folder.is_dir() and {path.name for path in folder.iterdir()} - {META, WEIGHTS}
    if shared:
        (folder / META).unlink(missing_ok=True)
    with nullcontext(folder) if shared else new_tree(folder, last=(META,)) as target:
        write_bytes(target / WEIGHTS, data)
        sealed.write(target / META, value)
    return str(value["weights_sha256"])


def read_meta(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's JSON (no torch, no tensors); `path` is the folder or either file in it.

    Raises:
        CheckpointError: no checkpoint, unfinished, damaged, another format, a field missing or of another type.
    """
    folder = _folder(Path(path))
    file = folder / META
    if not file.exists():
        what = "an unfinished save (weights without model.json)" if (folder / WEIGHTS).exists() else "no checkpoint"
        raise CheckpointError(f"{folder}: {what}; give a folder with model.json and model.safetensors")
    try:
        meta = sealed.read(file)
    except IntegrityError as error:
        raise CheckpointError(error.message, hint="copy the folder again") from error
    del meta["digest"]
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{file}: format {meta.get('format')!r} is not {FORMAT!r}")
    if meta.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: version {meta.get('version')!r}, this program reads version {VERSION}: use a newer program"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(meta.get(name), kind):
            raise CheckpointError(f"{file}: field {name!r} is missing or of another type")
    return meta


def load(path: str | Path, map_location: str | torch.device = "cpu", *, kind: str | None = None) -> MultiScaleModel:
    """Load a checkpoint folder, in evaluation mode, with its JSON as `model.meta`.

    Args:
        path: the folder or either file in it.
        map_location: device of the result.
        kind: run the same weights under another fusion kind. The kinds "single", "average" and "max" share one
            state dict. Weights of "hierarchical" lose the attention head under these kinds.

    Raises:
        IntegrityError: the weights' bytes differ from their digest. CheckpointError: anything else.
    """
    from hmsa_core.models.model import as_kind, build_empty, fill

    meta = read_meta(path)
    folder = _folder(Path(path))
    _refuse_trunk(meta, folder)
    state = read_weights(folder, meta)
    options = {**meta["options"], "kind": meta["kind"], "trunk": meta["trunk"]}
    model = build_empty(ModelConfig.checked(options, folder / META), meta["num_classes"])
    check_state(str(folder / WEIGHTS), model.state_dict(), state)
    fill(model, state)
    model.to(map_location).eval()
    model.meta = meta
    return model if kind is None or kind == model.kind else as_kind(model, kind)


def check_labels(meta: Mapping[str, Any], where: Path) -> None:
    """Check from its JSON alone that a checkpoint can label images.

    Raises:
        CheckpointError: it holds only a trunk. ConfigError: more classes than a byte has trainIds.
    """
    _refuse_trunk(meta, where)
    check_class_count(meta["num_classes"])


def check_class_count(count: int) -> None:
    """Whether labels of so many classes fit into bytes, of which 255 is ignored."""
    if count > _MOST_CLASSES:
        raise ConfigError(f"labels are bytes: at most {_MOST_CLASSES} classes, the model has {count}")


def _refuse_trunk(meta: Mapping[str, Any], where: Path) -> None:
    if meta["kind"] == "trunk":
        raise CheckpointError(
            f"{where}: holds only the weights of a trunk ({meta['trunk']}): start a training from it (init_from)"
        )


def read_weights(folder: Path, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint folder after its digest was checked, on the CPU."""
    file = folder / WEIGHTS
    if not file.exists():
        raise CheckpointError(f"{file}: missing, though model.json is there; copy the whole folder again")
    data = file.read_bytes()
    found = sha256_bytes(data)
    if found != meta["weights_sha256"]:
        raise IntegrityError(
            f"{file}: SHA-256 is {found[:16]}..., model.json says {str(meta['weights_sha256'])[:16]}...: "
            "the weights were changed or damaged; copy the folder again"
        )
    return safetensors_from_bytes(str(file), data)


def unwrap(model: nn.Module) -> MultiScaleModel:
    """Take the model out of DistributedDataParallel and torch.compile."""
    from hmsa_core.models.model import MultiScaleModel as Model

    inner: object = model
    while not isinstance(inner, Model):
        wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if wrapped is None:
            raise TypeError(f"not a model of hmsa_core.models.build: {type(model).__name__}")
        inner = wrapped
    return inner


def _folder(path: Path) -> Path:
    return path.parent if path.name in (WEIGHTS, META) else path


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return the differences of two state dicts in keys and shapes; empty for none."""
    reshaped = [
        f"{key}: {tuple(found[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    kinds = {
        "missing": [key for key in expected if key not in found],
        "left over": [key for key in found if key not in expected],
        "of another shape": reshaped,
    }
    return "; ".join(f"{len(keys)} {kind} ({_listed(keys)})" for kind, keys in kinds.items() if keys)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 3 else [*names[:3], "..."])


def check_state(where: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse a state dict that is not exactly the expected one, or that holds NaN or infinity."""
    if wrong := difference(expected, found):
        raise CheckpointError(f"{where}: keys do not fit: {wrong}")
    check_finite(where, found)


def check_finite(where: str, state: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity: safetensors does not look at values."""
    bad = [k for k, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(f"{where}: {len(bad)} tensors hold NaN or infinity ({_listed(bad)})")


def safetensors_from_bytes(where: str, data: bytes) -> dict[str, Tensor]:
    """Parse safetensors; the library refuses holes, overlaps, sizes beyond the file and huge headers."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{where}: not a whole safetensors file ({one_line(error)}); copy or download it again"
        ) from error


def initialise_from(model: nn.Module, checkpoint: str | Path) -> list[str]:
    """Load a parent's weights into `model`, in place.

    Args:
        model: made by `build` (its fresh weights stay where the parent has nothing that fits).
        checkpoint: a checkpoint folder, also one that holds only a trunk.

    Returns:
        Names of the parts that keep their fresh weights, each with the reason, for the log:
        ["ocr.cls_head (65 classes in the checkpoint, 19 here)", "scale_attn (not in the checkpoint)"].

    Raises:
        CheckpointError: the trunk, or a part that does not depend on the classes, does not fit.
    """
    bare = unwrap(model)
    meta = read_meta(checkpoint)
    folder = _folder(Path(checkpoint))
    state = read_weights(folder, meta)
    check_finite(str(folder), state)
    if meta["trunk"] != bare.config.trunk:
        raise CheckpointError(f"{folder}: trunk {meta['trunk']}, the model has {bare.config.trunk}")
    heads = ("ocr", "scale_attn") if meta["kind"] == "trunk" else _HEADS
    built = bare.state_dict()
    fresh = [head for head in heads if difference(_part(built, head), _part(state, head))]
    named = [_reason(head, meta, state, bare.num_classes) for head in fresh if _part(built, head)]
    prefixes = tuple(f"{head}." for head in fresh)
    expected, state = ({key: t for key, t in one.items() if not key.startswith(prefixes)} for one in (built, state))
    if wrong := difference(expected, state):
        raise CheckpointError(f"{folder}: does not fit the model: {wrong}")
    bare.load_state_dict(state, strict=False)
    _log.info("initialised %d tensors from %s; fresh: %s", len(state), folder, ", ".join(named) or "nothing")
    return named


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key.startswith(f"{part}.")}


def _reason(head: str, meta: Mapping[str, Any], state: Mapping[str, Tensor], classes: int) -> str:
    if not _part(state, head):
        return f"{head} (not in the checkpoint)"
    if head != "scale_attn" and meta["num_classes"] != classes:
        return f"{head} ({meta['num_classes']} classes in the checkpoint, {classes} here)"
    return f"{head} (another form in the checkpoint)"
