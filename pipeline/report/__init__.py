"""The report: one self-contained HTML page of a workspace, readable without network or server."""

from __future__ import annotations

from pipeline.report.build import build

__all__ = ["build"]
