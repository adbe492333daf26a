"""The HTTP surface: page, static files, read-only figures by GET, and the few writes by POST.

Names of images are query parameters and are looked up in the store; no part of a request ever becomes a path.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from hmsa_core.io.errors import (
    ConfigError,
    HmsaError,
    InputError,
    IntegrityError,
    LockedError,
    NoSpaceError,
    translate_os_error,
)
from hmsa_core.io.records import SaveError
from hmsa_core.labels.review import MarkError
from pipeline.inspector.export import MEDIA_TYPES, static_sources
from pipeline.inspector.session import Session, policy_setting
from pipeline.inspector.stats import Cuts, ImageQuery, OffGridError, image_rows, parse_sort, store_stats
from pipeline.inspector.view import StaleError, StoreView
from pipeline.inspector.weights import WeightJobs

_LOG = logging.getLogger(__name__)

MAX_ROWS = 1000
_KEEP = {"cache-control": "private, max-age=600"}  # their addresses hold the version of the labels


def _whole_number(request: Request, key: str, usual: int, highest: int) -> int:
    text = request.query_params.get(key, str(usual))
    if not text.isascii() or not text.isdigit() or int(text) > highest:
        raise ConfigError(f"{key}={text}: expected a whole number from 0 to {highest}")
    return int(text)


def _name(request: Request) -> str:
    name = request.query_params.get("name")
    if not name:
        raise ConfigError("which image? give name=NAME")
    return name


async def _body(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ConfigError("the body is not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError("the body must be a JSON object")
    return value


def _field(body: dict[str, Any], key: str, kind: type, usual: Any) -> Any:
    value = body.get(key, usual)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key}: expected {kind.__name__}")
    return value


def _texts(body: dict[str, Any], key: str) -> list[str]:
    values: list[str] = _field(body, key, list, [])
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{key}: expected a list of texts")
    return values


class Api:
    """Handlers over one session; blocking work runs in two small pools, so that thumbnails never delay a click."""

    def __init__(
        self, session: Session, weights: WeightJobs | None, foreground: Executor, background: Executor
    ) -> None:
        self._session, self._weights = session, weights
        self._foreground, self._background = foreground, background

    async def _run(self, work: Callable[[], Any], *, background: bool = False) -> Any:
        pool = self._background if background else self._foreground
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _cuts(self, request: Request) -> Cuts:
        query = request.query_params
        return self._session.cuts(query.get("threshold"), query.getlist("cut"))

    def _kept(self, request: Request) -> dict[str, str]:
        """Headers of what a browser may keep; a page of other labels than those that are served gets nothing."""
        asked = request.query_params.get("v")
        if asked not in (None, self._session.version):
            raise StaleError("the labels were made anew since this page was loaded", hint="load the page again")
        return {} if asked is None else _KEEP

    async def store(self, _: Request) -> Response:
        """All that the page computes with."""
        described = await self._run(self._session.describe)
        return JSONResponse({**described, "canWeigh": self._weights is not None})

    async def stats(self, request: Request) -> Response:
        """Figures per class: the same object as `autolabel inspect --json`."""
        cuts, name = self._cuts(request), request.query_params.get("class")
        view = self._session.view
        class_id = None if not name else view.classes.index(name)
        sources = self._session.sources(cuts.policy)
        return JSONResponse(await self._run(lambda: store_stats(view, cuts, sources, class_id)))

    async def images(self, request: Request) -> Response:
        """One page of the sorted, filtered list of images."""
        session, query = self._session, request.query_params
        cuts, name = self._cuts(request), query.get("class")
        wanted = ImageQuery(
            parse_sort(query.get("sort", "name")),
            session.view.classes.index(name) if name else None,
            query.get("q", ""),
            query.get("city", ""),
            query.get("review", ""),
        )
        offset, limit = _whole_number(request, "offset", 0, 10**9), _whole_number(request, "limit", 100, MAX_ROWS)

        def rows() -> dict[str, Any]:
            statuses = session.review.statuses()
            total, found = image_rows(session.view, cuts, wanted, offset=offset, limit=limit, statuses=statuses)
            for row in found:
                row["picture"] = session.view.pictures.has_picture(row["name"])
                row["damaged"] = not session.view.is_served(row["name"])
            return {"total": total, "offset": offset, "reviewed": len(statuses), "images": found}

        return JSONResponse(await self._run(rows))

    async def image(self, request: Request) -> Response:
        """What is known of one image."""
        name = _name(request)
        return JSONResponse(await self._run(lambda: self._session.image_details(name)))

    async def _file(
        self,
        request: Request,
        make: Callable[[StoreView, str], bytes],
        media: str,
        *,
        side: str = "a",
        background: bool = False,
    ) -> Response:
        kept, name = self._kept(request), _name(request)
        view = self._session.image(name, side)
        data = await self._run(lambda: make(view, name), background=background)
        return Response(data, media_type=media, headers=kept)

    async def plane(self, request: Request) -> Response:
        """Label, confidence or human map as 8-bit grey PNG."""
        query = request.query_params
        plane, side = query.get("plane", "label"), query.get("side", "a")
        return await self._file(request, lambda view, name: view.plane_png(name, plane), "image/png", side=side)

    async def mini(self, request: Request) -> Response:
        """Small label map above small code map."""
        return await self._file(request, StoreView.mini_png, "image/png", background=True)

    async def thumb(self, request: Request) -> Response:
        """Small photograph."""
        return await self._file(request, lambda v, name: v.pictures.thumb(name), "image/jpeg", background=True)

    async def picture(self, request: Request) -> Response:
        """The photograph."""
        kept = self._kept(request)
        name = _name(request)
        view = self._session.image(name)
        data, media = await self._run(lambda: view.pictures.picture(name))
        return Response(data, media_type=media, headers=kept)

    async def reviews(self, request: Request) -> Response:
        """Marks of one image, or of all."""
        name = request.query_params.get("name")
        review = self._session.review
        marks = await self._run(lambda: review.of(name) if name else review.marks())
        return JSONResponse({"entries": [review.shown(mark) for mark in marks]})

    async def add_review(self, request: Request) -> Response:
        """Append a mark, or take one back."""
        body, session = await _body(request), self._session
        name = _field(body, "name", str, "")
        row = session.image(name).info(name)

        def write() -> dict[str, Any]:
            made = {}
            if "withdraws" in body:
                session.review.withdraw(name, _field(body, "withdraws", str, ""))
            else:
                mark = session.review.add(
                    name,
                    _field(body, "verdict", str, ""),
                    size=(row["height"], row["width"]),
                    region=body.get("region"),
                    note=_field(body, "note", str, ""),
                    reviewer=session.reviewer,
                )
                made = {"id": mark.id}
            marks = session.review.of(name)
            found = session.review.statuses().get(name, "")
            return {"entries": [session.review.shown(mark) for mark in marks], "status": found, **made}

        return JSONResponse(await self._run(write))

    async def save_policy(self, request: Request) -> Response:
        """Write the thresholds as a policy file."""
        body, session = await _body(request), self._session
        cuts = session.cuts(_field(body, "threshold", str, "") or None, _texts(body, "cut"))
        path, digest = await self._run(lambda: session.save_policy(cuts))
        setting = policy_setting(session.view.path, path)
        hint = f"train with it: pseudo_label.threshold: {setting} in params.yaml"
        return JSONResponse({"file": str(path), "digest": digest, "hint": hint})

    async def audit(self, _: Request) -> Response:
        """The audit of this store, if there is one."""
        audit = self._session.audits.current
        found = None if audit is None else {**audit.to_json(), "file": str(self._session.audits.path)}
        return JSONResponse({"current": found})

    async def audit_item(self, request: Request) -> Response:
        """One item with the position of its pixel."""
        audit = self._session.audits.current
        if audit is None or audit.id != request.query_params.get("audit"):
            raise InputError("no such audit is under way")
        item = _whole_number(request, "item", 0, 10**6)
        return JSONResponse(await self._run(lambda: audit.located(self._session.view, item)))

    async def draw_audit(self, request: Request) -> Response:
        """Draw a new audit."""
        body, session = await _body(request), self._session
        cuts = session.cuts(_field(body, "threshold", str, "") or None, _texts(body, "cut"))
        per_class, seed = _field(body, "per_class", int, 16), _field(body, "seed", int, 0)
        if not 0 <= seed < 10**6:
            raise ConfigError("seed: expected 0 to 999999")
        names = _texts(body, "classes")
        audit = await self._run(lambda: session.draw_audit(cuts, per_class=per_class, seed=seed, classes=names))
        return JSONResponse({**audit.to_json(), "file": str(session.audits.path)})

    async def answer_audit(self, request: Request) -> Response:
        """Record one answer."""
        body, audits = await _body(request), self._session.audits
        which, item = _field(body, "audit", str, ""), _field(body, "item", int, -1)
        verdict = _field(body, "verdict", str, "")
        audit = await self._run(lambda: audits.answer(which, item, verdict))
        return JSONResponse({"results": audit.results(), "overall": audit.overall()})

    async def certificate(self, _: Request) -> Response:
        """The certificate of this store, or why the one beside it is void."""
        return JSONResponse(await self._run(self._session.certificate))

    async def begin_certificate(self, request: Request) -> Response:
        """Begin a certificate, or go on with the one of the same plan."""
        body, session = await _body(request), self._session
        target, names = body.get("target"), _texts(body, "classes")
        if not isinstance(target, int | float) or isinstance(target, bool):
            raise ConfigError("target: expected a number")
        budget, seed = _field(body, "budget", int, 300), _field(body, "seed", int, 0)
        begun = await self._run(
            lambda: session.begin_certificate(target=float(target), budget=budget, seed=seed, classes=names)
        )
        return JSONResponse(begun)

    async def answer_certificate(self, request: Request) -> Response:
        """Record one answer and draw on."""
        body, session = await _body(request), self._session
        which, item = _field(body, "audit", str, ""), _field(body, "item", int, -1)
        verdict = _field(body, "verdict", str, "")
        return JSONResponse(await self._run(lambda: session.answer_certificate(which, item, verdict)))

    def _weigher(self) -> WeightJobs:
        if self._weights is None:
            raise InputError("scale weights need a checkpoint", hint="start with --checkpoint F")
        return self._weights

    async def start_weights(self, request: Request) -> Response:
        """Compute the scale weights of one image in a process of its own."""
        name = _field(await _body(request), "name", str, "")
        self._session.image(name)
        return JSONResponse(self._weigher().start(name))

    async def weights_state(self, request: Request) -> Response:
        """Whether the weights of an image are there yet."""
        return JSONResponse(self._weigher().state(_name(request)))

    async def weight(self, request: Request) -> Response:
        """Weight of one scale as grey PNG, 255 = 1.0."""
        data = self._weigher().plane(_name(request), request.query_params.get("scale", ""))
        return Response(data, media_type="image/png")

    def routes(self) -> list[Route]:
        """All routes below /api."""
        gets = {"store": self.store, "stats": self.stats, "images": self.images, "image": self.image}
        gets |= {"plane": self.plane, "mini": self.mini, "thumb": self.thumb, "picture": self.picture}
        gets |= {
            "review": self.reviews,
            "audit": self.audit,
            "audit/item": self.audit_item,
            "certificate": self.certificate,
        }
        gets |= {"weights": self.weights_state, "weight": self.weight}
        posts = {"review": self.add_review, "policy": self.save_policy, "weights": self.start_weights}
        posts |= {"audit": self.draw_audit, "audit/answer": self.answer_audit}
        posts |= {"certificate": self.begin_certificate, "certificate/answer": self.answer_certificate}
        both = (("GET", gets), ("POST", posts))
        return [
            Route(f"/api/{path}", handler, methods=[method])
            for method, handlers in both
            for path, handler in handlers.items()
        ]


# -- the page -----------------------------------------------------------------------------------------


class Page:
    """The page and its files, read once at start and served by exact name: no request ever becomes a path."""

    def __init__(self, session: Session, token: str) -> None:
        sources = static_sources()
        # The browser loads all modules at once instead of one import level after the other.
        preload = "\n".join(
            f'<link rel="modulepreload" href="static/{name}">' for name in sources if name.endswith(".js")
        )
        page = sources.pop("index.html").replace("{{token}}", html.escape(token, quote=True))
        self._page = page.replace("{{labels}}", session.version).replace("</head>", f"{preload}\n</head>")
        self._files = {name: text.encode("utf-8") for name, text in sources.items()}
        self._session = session

    async def page(self, request: Request) -> Response:
        """The page itself; a link with a threshold that does not exist says so and shows nothing near it."""
        query = request.query_params
        try:
            self._session.cuts(query.get("threshold"), query.getlist("cut"))
            if query.get("compare"):
                self._session.cuts(query.get("compare"))
        except ConfigError as error:
            return _error_page(error, query.multi_items())
        return HTMLResponse(self._page)

    async def static(self, request: Request) -> Response:
        """One static file; anything that is not exactly one of their names is 404."""
        name = request.path_params["file"]
        data = self._files.get(name)
        if data is None:
            raise HTTPException(404)
        media = MEDIA_TYPES[Path(name).suffix]
        return Response(data, media_type=media, headers={"cache-control": "no-cache"})


def _error_page(error: ConfigError, query: Sequence[tuple[str, str]]) -> Response:
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


# -- requests that fail -------------------------------------------------------------------------------


def _status(error: HmsaError) -> int:
    if isinstance(error, ConfigError | MarkError):
        return 400
    if isinstance(error, IntegrityError | LockedError | StaleError):
        return 409
    if isinstance(error, SaveError | NoSpaceError):
        return 507  # the server cannot store what it was given
    return 404 if isinstance(error, InputError) else 500


def _answer(error: HmsaError, status: int) -> Response:
    """One error as JSON: its kind, one line, a hint, and the neighbours of an off-grid threshold."""
    if status >= 500:
        _LOG.warning("error: %s%s", error.message, f" (hint: {error.hint})" if error.hint else "")
    body: dict[str, Any] = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, OffGridError):
        body["neighbours"] = list(error.neighbours)
    return JSONResponse(body, status_code=status)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HmsaError)  # registered for it alone  # noqa: S101
    return _answer(error, _status(error))


async def _on_os_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)  # registered for it alone  # noqa: S101
    # Writers say what they wrote (`saving`): this one came from reading, and no question can mend it.
    return _answer(translate_os_error(error, "reading"), 500)


async def _on_http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": "NotFound", "message": "nothing here", "hint": ""}, status_code=status)


HANDLERS: dict[Any, Callable[[Request, Exception], Any]] = {
    HmsaError: _on_error,
    OSError: _on_os_error,
    HTTPException: _on_http_error,
}
