"""How a checkpoint is run on images of one's own: what is not asked for is what the checkpoint says. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa_core.config import LARGEST_SCALE, RuntimeConfig
from hmsa_core.io.errors import ConfigError
from hmsa_core.models import read_meta
from hmsa_core.models.checkpoint import check_labels
from hmsa_core.models.options import scales_fault

MAX_SKIPPED = 0.05  # share of the images that may be damaged or changed (at least one may) before a run fails


@dataclass(frozen=True)
class RunOptions:
    """How a checkpoint is run."""

    checkpoint: Path
    meta: dict[str, Any]  # the checkpoint's JSON
    scales: tuple[float, ...]
    flip: bool
    runtime: RuntimeConfig


def run_options(
    checkpoint: str | Path, scales: Sequence[float] | None, flip: bool | None, runtime: RuntimeConfig
) -> RunOptions:
    """Fill in what the checkpoint says about itself.

    Raises:
        CheckpointError: there is no usable checkpoint. ConfigError: unusable scales.
    """
    path = Path(checkpoint)
    meta = read_meta(path)
    check_labels(meta, path)
    inference = meta.get("inference") or {}
    usual = (1.0,) if meta["kind"] == "single" else (0.5, 1.0, 2.0)
    asked = tuple(float(s) for s in (scales if scales is not None else inference.get("scales") or usual))
    if scales_fault(asked, LARGEST_SCALE):
        shown = ",".join(f"{s:g}" for s in asked)
        raise ConfigError(
            f"--scales {shown}: give different numbers above 0 and up to {LARGEST_SCALE:g}, one of them 1",
            hint="for example --scales 0.5,1,2",
        )
    flipped = flip if flip is not None else bool(inference.get("flip", True))
    return RunOptions(path if path.is_dir() else path.parent, meta, asked, flipped, runtime)
