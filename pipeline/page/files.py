"""The files of the page, and the content policy under which a browser runs them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
MEDIA_TYPES = {f".{end}": f"text/{kind}; charset=utf-8" for end, kind in (("js", "javascript"), ("css", "css"))}
MEDIA_TYPES |= {".html": "text/html; charset=utf-8", ".svg": "image/svg+xml"}


def static_sources() -> dict[str, str]:
    """{file name: text} of all files of the page, which lie in `static/`."""
    files = sorted((resources.files(__package__) / "static").iterdir(), key=lambda file: file.name)
    return {file.name: file.read_text("utf-8") for file in files if Path(file.name).suffix in MEDIA_TYPES}
