"""What `autolabel doctor` finds, as tests ask for it."""

from __future__ import annotations

from pathlib import Path

from pipeline.doctor.checks import examine
from pipeline.doctor.dvc import Finding


def found(root: Path, name: str, *, deep: bool = True) -> Finding:
    """The first finding of a name."""
    return next(finding for finding in examine(root, deep=deep) if finding.name == name)


def broken(root: Path) -> dict[str, Finding]:
    """Everything that is broken, by name."""
    return {finding.name: finding for finding in examine(root) if finding.state == "broken"}


def states(root: Path) -> dict[str, str]:
    """State of each finding by its name; of several with one name the last."""
    return {finding.name: finding.state for finding in examine(root)}
