"""The page's own files, read once at start and served by exact name: no request ever becomes a path."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from hmsa_core.io.errors import ConfigError
from pipeline.inspector.cuts import OffGridError

__all__ = ["StaticFiles", "error_page", "static_sources"]

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}


def static_sources() -> dict[str, str]:
    """File name -> text of everything in `static/`."""
    folder = resources.files(__package__) / "static"
    return {
        item.name: item.read_text("utf-8")
        for item in sorted(folder.iterdir(), key=lambda i: i.name)
        if "." + item.name.rpartition(".")[2] in _TYPES
    }


class StaticFiles:
    """Answers for `/` and `/static/NAME`."""

    def __init__(self, token: str) -> None:
        sources = static_sources()
        modules = [name for name in sources if name.endswith(".js")]
        # All modules at once instead of one import level after the other.
        preload = "\n".join(f'<link rel="modulepreload" href="static/{name}">' for name in modules)
        page = sources.pop("index.html")
        self._page = page.replace("{{token}}", html.escape(token, quote=True)).replace("</head>", f"{preload}\n</head>")
        self._files = {name: text.encode("utf-8") for name, text in sources.items()}

    def page(self) -> Response:
        """The page itself."""
        return HTMLResponse(self._page)

    def answer(self, name: str) -> Response:
        """One static file; anything that is not exactly one of their names is 404."""
        data = self._files.get(name)
        if data is None:
            raise HTTPException(404)
        media = _TYPES["." + name.rpartition(".")[2]]
        return Response(data, media_type=media, headers={"cache-control": "no-cache"})


def error_page(error: ConfigError, query: Sequence[tuple[str, str]]) -> Response:
    """400 for an address that asks for something that does not exist, with links to its neighbours."""
    links = ""
    if isinstance(error, OffGridError):
        for near in error.neighbours:
            fixed = [(k, _mended(k, v, error.given, near)) for k, v in query]
            links += f'<li><a href="./?{html.escape(urlencode(fixed), quote=True)}">{html.escape(near)}</a></li>'
    body = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Not on the grid</title>'
        '<link rel="icon" href="static/icon.svg"><link rel="stylesheet" href="static/base.css"></head>'
        '<body><div id="fatal" class="card" role="alert"><h1>This address cannot be shown</h1>'
        f'<p>{html.escape(error.message)}</p><p class="muted">{html.escape(error.hint)}</p>'
        f'<ul>{links}</ul><p><a href="./">Open without an address</a></p></div></body></html>'
    )
    return HTMLResponse(body, status_code=400)


def _mended(key: str, value: str, bad: str, near: str) -> str:
    if key in ("threshold", "compare") and value == bad:
        return near
    name, colon, text = value.rpartition(":")
    return f"{name}:{near}" if key == "cut" and colon and text == bad else value
