"""The stages: one module each, named as the stage with underscores, with `run(ws)` and `disk_estimate(ws)`.

Their table is `pipeline.workspace.table`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pipeline.workspace.table import section_of


def module_of(stage: str) -> ModuleType:
    """Import the stage's module; modules are imported when their stage runs."""
    return importlib.import_module(f"pipeline.stages.{section_of(stage)}")
