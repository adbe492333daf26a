"""report: one self-contained page from the files of the other stages."""

from __future__ import annotations

from pipeline.jobs.support import write_metrics
from pipeline.report.build import build
from pipeline.workspace.workspace import Workspace

STAGE = "report"


def disk_estimate(ws: Workspace) -> int:
    """Bytes of the page: pictures are embedded."""
    return (4 + ws.params.report.pictures) << 20


def run(ws: Workspace) -> None:
    """Write report/index.html."""
    build(ws)
    write_metrics(ws, STAGE, {"pages": len(list(ws.path("report").glob("*.html")))})
