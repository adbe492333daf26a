"""What `autolabel doctor` finds, as tests ask for it."""

from __future__ import annotations

from pathlib import Path

from pipeline.doctor import checks as doctor

__all__ = ["states"]


def states(root: Path) -> dict[str, str]:
    """State of each finding by its name; of several with one name the last."""
    return {finding.name: finding.state for finding in doctor.examine(root)}
