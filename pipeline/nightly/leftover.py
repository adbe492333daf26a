"""Is params.yaml still that of a night which was killed? Light: a stage asks before it imports anything."""

from __future__ import annotations

from pathlib import Path

from hmsa_core.io.errors import ConfigError
from pipeline.nightly.reaper import nightly_lock

__all__ = ["SAVED", "is_killed_nights", "refuse_killed_nights"]

SAVED = "work/nightly/params.saved.yaml"  # what params.yaml was before the night; there for the night's length


def is_killed_nights(root: Path) -> bool:
    """Whether a night that is gone left its own parameters in params.yaml."""
    return (root / SAVED).exists() and nightly_lock(root).is_free()


def refuse_killed_nights(root: Path) -> None:
    """Raise a ConfigError where work would be done with a killed night's parameters; a living one's stages pass."""
    if is_killed_nights(root):
        raise ConfigError(
            f"{root / 'params.yaml'}: a night that was killed left its own parameters in it",
            hint="`autolabel doctor --fix` puts yours back; then run the same command again",
        )
