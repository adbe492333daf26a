"""The nine stages of the chain: one module each with `run(ws)`, imported only when it is run."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["STAGES", "VERSIONS", "module_of", "section_of"]

# Code version of each stage: raised when its results change for the same parameters and inputs. The same
# numbers stand in params.yaml (`versions`), where DVC sees them: raising one re-runs that stage everywhere.
VERSIONS: dict[str, int] = {
    "prepare": 1,
    "teacher-pretrain": 1,
    "teacher-train": 1,
    "calibrate": 1,
    "auto-infer": 1,
    "pseudo-label": 1,
    "student-train": 1,
    "evaluate": 1,
    "report": 1,
}
STAGES: tuple[str, ...] = tuple(VERSIONS)  # in the order of the chain


def section_of(stage: str) -> str:
    """The stage's section of params.yaml: its name with underscores."""
    return stage.replace("-", "_")


def module_of(stage: str) -> ModuleType:
    """Import the stage's module."""
    return importlib.import_module(f"pipeline.stages.{section_of(stage)}")
