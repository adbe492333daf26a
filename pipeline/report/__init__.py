"""The report: one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html

from hmsa_core import atomic
from pipeline.summary import summary_text
from pipeline.workspace import Workspace

__all__ = ["build"]


def build(ws: Workspace) -> None:
    """Write report/index.html: results in figures and the stages' pictures, embedded."""
    out = ws.path("report")
    pictures = "\n".join(_picture(path.stem, path.read_bytes()) for path in sorted(ws.path("plots").glob("*.png")))
    title = html.escape(ws.params.report.title)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body><h1>{title}</h1>\n<pre>{html.escape(summary_text(ws))}</pre>\n{pictures}\n</body></html>\n"
    )
    atomic.write_text(out / "index.html", page)


def _picture(name: str, data: bytes) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}"></figure>'
