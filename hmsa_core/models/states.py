"""State dicts: read safely, compared strictly. Nothing here runs code from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hmsa_core.io.errors import CheckpointError, one_line

__all__ = ["StateDifference", "check_finite", "check_state", "compare_states", "safetensors_from_bytes"]


@dataclass(frozen=True)
class StateDifference:
    """Keys in which a state dict differs from the one a model has."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # "key: (found) instead of (expected)"

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def describe(self, *, verbose: bool = False) -> str:
        """One line: counts with the first three keys of each kind, all of them if `verbose`."""
        parts = []
        for label, keys in (
            ("missing", self.missing),
            ("left over", self.unexpected),
            ("of another shape", self.reshaped),
        ):
            if keys:
                shown = keys if verbose else keys[:3]
                more = ", ..." if len(keys) > len(shown) else ""
                parts.append(f"{len(keys)} {label} ({', '.join(shown)}{more})")
        return "; ".join(parts)


def compare_states(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> StateDifference:
    """List every missing, left-over and mis-shaped key."""
    return StateDifference(
        missing=tuple(key for key in expected if key not in found),
        unexpected=tuple(key for key in found if key not in expected),
        reshaped=tuple(
            f"{key}: {tuple(found[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in found and found[key].shape != tensor.shape
        ),
    )


def check_state(
    where: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, verbose: bool = False
) -> None:
    """Refuse a state dict that is not exactly the expected one, or that holds NaN or infinity."""
    difference = compare_states(expected, found)
    if difference:
        hint = "" if verbose else "--verbose lists all keys"
        raise CheckpointError(f"{where}: keys do not fit: {difference.describe(verbose=verbose)}", hint=hint)
    check_finite(where, found, verbose=verbose)


def check_finite(where: str, state: Mapping[str, Tensor], *, verbose: bool = False) -> None:
    """Refuse NaN and infinity: safetensors does not look at values."""
    bad = [k for k, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        shown = bad if verbose else bad[:3]
        more = ", ..." if len(bad) > len(shown) else ""
        raise CheckpointError(f"{where}: {len(bad)} tensors hold NaN or infinity ({', '.join(shown)}{more})")


def safetensors_from_bytes(where: str, data: bytes) -> dict[str, Tensor]:
    """Parse safetensors; the library refuses holes, overlaps, sizes beyond the file and huge headers."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{where}: not a whole safetensors file ({one_line(error)}); copy or download it again"
        ) from error
