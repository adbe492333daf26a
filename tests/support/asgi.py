"""Calls an ASGI application as a server would: any method, any raw path, any headers, no network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlencode

import cv2
import numpy as np

from pipeline.page.server import Guard, make_app
from pipeline.review.session import Session

Headers = dict[str, str] | list[tuple[str, str]]


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def picture(self) -> np.ndarray:
        """The body as pixels, as they are in the file."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.body, np.uint8), cv2.IMREAD_UNCHANGED))

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8")


class AsgiClient:
    """Talks to `app` as a browser page on `host` would."""

    def __init__(self, app: Any, host: str = "127.0.0.1:8733", token: str = "") -> None:
        self.app, self.host, self.token = app, host, token

    def request(self, method: str, target: str, headers: Headers | None = None, body: bytes = b"") -> Reply:
        """Send one request; `target` is what stands in the request line, percent escapes and all."""
        path, _, query = target.partition("?")
        given = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
        if not any(name.lower() == "host" for name, _ in given):
            given.insert(0, ("Host", self.host))
        if body and not any(name.lower() == "content-length" for name, _ in given):
            given.append(("Content-Length", str(len(body))))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path.encode("latin-1", "replace"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8733),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given],
        }
        return asyncio.run(self._call(scope, body))

    async def _call(self, scope: dict[str, Any], body: bytes) -> Reply:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start = next(m for m in sent if m["type"] == "http.response.start")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        return Reply(start["status"], headers, b"".join(m.get("body", b"") for m in sent[1:]))

    def get(self, path: str, headers: Headers | None = None, **params: Any) -> Reply:
        """GET with query parameters (lists repeat)."""
        query = urlencode(params, doseq=True)
        return self.request("GET", f"{path}?{query}" if query else path, headers)

    def post(self, path: str, value: object, headers: dict[str, str] | None = None) -> Reply:
        """POST JSON as the page does, with its token."""
        usual = {"Content-Type": "application/json", "X-Autolabel-Token": self.token, "Origin": f"http://{self.host}"}
        return self.request("POST", path, {**usual, **(headers or {})}, json.dumps(value).encode("utf-8"))


@contextmanager
def client_of(session: Session, guard: Guard | None = None, host: str = "127.0.0.1:8733") -> Iterator[AsgiClient]:
    """A client of the whole guarded application, as a page on `host` sees it; of a guard that is given the token is not known."""
    own = Guard(token="a-token-for-tests")
    with ThreadPoolExecutor(2) as pool:
        app = make_app(session, guard or own, weights=None, foreground=pool, background=pool)
        yield AsgiClient(app, host, "" if guard else own.token)
