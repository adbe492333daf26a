"""HTTP routes: page, static files and figures by GET, writes by POST.

Image names are query parameters and are looked up in the store; no part of a request becomes a path.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
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
from hmsa_core.labels.store.codes import OffGridError
from pipeline.page.files import MEDIA_TYPES, static_sources
from pipeline.review.session import Session, policy_setting
from pipeline.review.stats import ImageQuery, Thresholds, image_rows, parse_sort, store_stats
from pipeline.review.view import StaleError
from pipeline.review.weights import WeightJobs

_LOG = logging.getLogger(__name__)

MAX_ROWS = 1000
_KEEP = {"cache-control": "private, max-age=600"}  # for pictures: their addresses hold the version of the labels

Answer = dict[str, Any]
Picture = tuple[bytes, str]  # bytes and media type
Endpoint = Callable[[Request], Awaitable[Response]]


def _whole_number(query: QueryParams, key: str, usual: int, highest: int) -> int:
    text = query.get(key, str(usual))
    if not text.isascii() or not text.isdigit() or int(text) > highest:
        raise ConfigError(f"{key}={text}: expected a whole number from 0 to {highest}")
    return int(text)


def _number_of_item(query: QueryParams) -> int:
    return _whole_number(query, "item", 0, 10**6)


def _name(query: QueryParams) -> str:
    name = query.get("name")
    if not name:
        raise ConfigError("which image? give name=NAME")
    return name


async def _body(request: Request) -> Answer:
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ConfigError("the body is not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError("the body must be a JSON object")
    return value


def _field(body: Answer, key: str, kind: type, usual: Any) -> Any:
    value = body.get(key, usual)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key}: expected {kind.__name__}")
    return value


def _texts(body: Answer, key: str) -> list[str]:
    values: list[str] = _field(body, key, list, [])
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{key}: expected a list of texts")
    return values


def _verdict(body: Answer) -> tuple[str, int, str]:
    """An answer: id of its audit, certificate or questions, number of the item, verdict."""
    return _field(body, "audit", str, ""), _field(body, "item", int, -1), _field(body, "verdict", str, "")


class Api:
    """Handlers of one session, each a plain function of the query or the body.

    The handlers run in two small pools, so that thumbnails never delay a click.
    """

    def __init__(
        self, session: Session, weights: WeightJobs | None, foreground: Executor, background: Executor
    ) -> None:
        self._session, self._weights = session, weights
        self._foreground, self._background = foreground, background

    def _thresholds(self, query: QueryParams) -> Thresholds:
        return self._session.thresholds(query.get("threshold"), query.getlist("cut"))

    def _thresholds_of(self, body: Answer) -> Thresholds:
        return self._session.thresholds(_field(body, "threshold", str, "") or None, _texts(body, "cut"))

    def _class(self, query: QueryParams) -> int | None:
        name = query.get("class")
        return self._session.view.classes.index(name) if name else None

    def _kept(self, version: str | None) -> dict[str, str]:
        """Cache headers of a picture; StaleError if the page was loaded with another version of the labels."""
        if version not in (None, self._session.version):
            raise StaleError("the labels were made anew since this page was loaded", hint="load the page again")
        return {} if version is None else _KEEP

    def store(self, _: QueryParams) -> Answer:
        """Data that the page computes with."""
        return {**self._session.describe(), "canWeigh": self._weights is not None}

    def stats(self, query: QueryParams) -> Answer:
        """Figures per class: the same object as `autolabel inspect --json`."""
        thresholds, class_id = self._thresholds(query), self._class(query)
        return store_stats(self._session.view, thresholds, self._session.sources(thresholds.policy), class_id)

    def images(self, query: QueryParams) -> Answer:
        """One page of the sorted, filtered list of images."""
        session, thresholds = self._session, self._thresholds(query)
        chosen = (query.get(key, "") for key in ("q", "city", "review"))
        wanted = ImageQuery(parse_sort(query.get("sort", "name")), self._class(query), *chosen)
        offset, limit = _whole_number(query, "offset", 0, 10**9), _whole_number(query, "limit", 100, MAX_ROWS)
        statuses = session.review.statuses()
        total, found = image_rows(session.view, thresholds, wanted, offset=offset, limit=limit, statuses=statuses)
        for row in found:
            row["picture"] = session.view.pictures.has_picture(row["name"])
            row["damaged"] = not session.view.is_served(row["name"])
        return {"total": total, "offset": offset, "reviewed": len(statuses), "images": found}

    def plane(self, query: QueryParams) -> Picture:
        """Label, confidence or human map as 8-bit grey PNG."""
        name = _name(query)
        view = self._session.image(name, query.get("side", "a"))
        return view.plane_png(name, query.get("plane", "label")), "image/png"

    def mini(self, query: QueryParams) -> Picture:
        """Small label map above the small map of confidence codes, as PNG."""
        name = _name(query)
        return self._session.image(name).mini_png(name), "image/png"

    def thumb(self, query: QueryParams) -> Picture:
        """Small photograph."""
        name = _name(query)
        return self._session.image(name).pictures.thumb(name), "image/jpeg"

    def picture(self, query: QueryParams) -> Picture:
        """The photograph."""
        name = _name(query)
        return self._session.image(name).pictures.picture(name)

    def reviews(self, query: QueryParams) -> Answer:
        """Marks of one image, or of all images."""
        name, review = query.get("name"), self._session.review
        return {"entries": [review.shown(mark) for mark in (review.of(name) if name else review.marks())]}

    def add_review(self, body: Answer) -> Answer:
        """Append a mark, or withdraw a mark."""
        session, name = self._session, _field(body, "name", str, "")
        row, made = session.image(name).info(name), {}
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
        entries = [session.review.shown(mark) for mark in session.review.of(name)]
        return {"entries": entries, "status": session.review.statuses().get(name, ""), **made}

    def save_policy(self, body: Answer) -> Answer:
        """Write the thresholds as a policy file."""
        path, digest = self._session.save_policy(self._thresholds_of(body))
        setting = policy_setting(self._session.view.path, path)
        hint = f"train with it: pseudo_label.threshold: {setting} in params.yaml"
        return {"file": str(path), "digest": digest, "hint": hint}

    def audit(self, _: QueryParams) -> Answer:
        """The current audit of this store, or None."""
        audit = self._session.audits.current
        return {"current": None if audit is None else {**audit.to_json(), "file": str(self._session.audits.path)}}

    def audit_item(self, query: QueryParams) -> Answer:
        """One item with the position of its pixel."""
        audit = self._session.audits.current
        if audit is None or audit.id != query.get("audit"):
            raise InputError("no such audit is under way")
        return audit.located(self._session.view, _number_of_item(query))

    def draw_audit(self, body: Answer) -> Answer:
        """Draw a new audit."""
        session, thresholds = self._session, self._thresholds_of(body)
        per_class, seed = _field(body, "per_class", int, 16), _field(body, "seed", int, 0)
        if not 0 <= seed < 10**6:
            raise ConfigError("seed: expected 0 to 999999")
        audit = session.draw_audit(thresholds, per_class=per_class, seed=seed, classes=_texts(body, "classes"))
        return {**audit.to_json(), "file": str(session.audits.path)}

    def answer_audit(self, body: Answer) -> Answer:
        """Record one answer."""
        audit = self._session.audits.answer(*_verdict(body))
        return {"results": audit.results(), "overall": audit.overall()}

    def begin_certificate(self, body: Answer) -> Answer:
        """Begin a certificate, or continue the existing certificate of the same plan."""
        target, names = body.get("target"), _texts(body, "classes")
        if not isinstance(target, int | float) or isinstance(target, bool):
            raise ConfigError("target: expected a number")
        budget, seed = _field(body, "budget", int, 300), _field(body, "seed", int, 0)
        return self._session.begin_certificate(target=float(target), budget=budget, seed=seed, classes=names)

    def draw_questions(self, body: Answer) -> Answer:
        """Draw new questions after those that the page shows."""
        budget, names = _field(body, "budget", int, 100), _texts(body, "classes")
        return self._session.draw_questions(budget=budget, classes=names, after=_field(body, "after", str, ""))

    def _weigher(self) -> WeightJobs:
        if self._weights is None:
            raise InputError("scale weights need a checkpoint", hint="start with --checkpoint F")
        return self._weights

    def start_weights(self, body: Answer) -> Answer:
        """Compute the scale weights of one image in a separate process."""
        name = _field(body, "name", str, "")
        self._session.image(name)
        return self._weigher().start(name)

    def weight(self, query: QueryParams) -> Picture:
        """Weight of one scale as grey PNG, 255 = 1.0."""
        return self._weigher().plane(_name(query), query.get("scale", "")), "image/png"

    def _getting(self, answer: Callable[[QueryParams], Answer]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(await _in(self._foreground, partial(answer, request.query_params)))

        return endpoint

    def _posting(self, answer: Callable[[Answer], Answer]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(await _in(self._foreground, partial(answer, await _body(request))))

        return endpoint

    def _drawing(self, draw: Callable[[QueryParams], Picture], pool: Executor) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            headers = self._kept(request.query_params.get("v"))
            data, media = await _in(pool, partial(draw, request.query_params))
            return Response(data, media_type=media, headers=headers)

        return endpoint

    def routes(self) -> list[Route]:
        """All routes below /api."""
        session = self._session
        gets: dict[str, Callable[[QueryParams], Answer]] = {
            "store": self.store,
            "stats": self.stats,
            "images": self.images,
            "image": lambda query: session.image_details(_name(query)),
            "review": self.reviews,
            "audit": self.audit,
            "audit/item": self.audit_item,
            "certificate": lambda _: session.certificate(),
            "questions": lambda _: session.current_questions(),
            "questions/item": lambda query: session.question(query.get("audit", ""), _number_of_item(query)),
            "weights": lambda query: self._weigher().state(_name(query)),
        }
        near = {"plane": self.plane, "picture": self.picture, "weight": self.weight}
        small = {"mini": self.mini, "thumb": self.thumb}
        posts: dict[str, Callable[[Answer], Answer]] = {
            "review": self.add_review,
            "policy": self.save_policy,
            "audit": self.draw_audit,
            "audit/answer": self.answer_audit,
            "certificate": self.begin_certificate,
            "certificate/answer": lambda body: session.answer_certificate(*_verdict(body)),
            "questions": self.draw_questions,
            "questions/answer": lambda body: session.answer_question(*_verdict(body)),
            "questions/undo": lambda body: session.undo_question(_field(body, "audit", str, "")),
            "weights": self.start_weights,
        }
        made = [("GET", path, self._getting(answer)) for path, answer in gets.items()]
        made += [("GET", path, self._drawing(draw, self._foreground)) for path, draw in near.items()]
        made += [("GET", path, self._drawing(draw, self._background)) for path, draw in small.items()]
        made += [("POST", path, self._posting(answer)) for path, answer in posts.items()]
        return [Route(f"/api/{path}", endpoint, methods=[method]) for method, path, endpoint in made]


async def _in(pool: Executor, work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


class Page:
    """The page and its files, read once at start and served by exact name; no request becomes a path."""

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
        """The page; a link with a threshold off the grid gives an error page, never a nearby threshold."""
        query = request.query_params
        try:
            self._session.thresholds(query.get("threshold"), query.getlist("cut"))
            if query.get("compare") and self._session.view.kind == "raw":
                self._session.thresholds(query.get("compare"))
        except ConfigError as error:
            return _error_page(error, query.multi_items())
        return HTMLResponse(self._page)

    async def static(self, request: Request) -> Response:
        """One static file; any other name gives 404."""
        name = request.path_params["file"]
        if name not in self._files:
            raise HTTPException(404)
        media = MEDIA_TYPES[Path(name).suffix]
        return Response(self._files[name], media_type=media, headers={"cache-control": "no-cache"})


def _error_page(error: ConfigError, query: Sequence[tuple[str, str]]) -> Response:
    """Error page (status 400) for an invalid address, with links to the nearest thresholds on the grid."""
    links = ""
    if isinstance(error, OffGridError):
        for near in error.neighbours:
            fixed = [(k, _corrected(k, v, error.given, near)) for k, v in query]
            links += f'<li><a href="./?{html.escape(urlencode(fixed), quote=True)}">{html.escape(near)}</a></li>'
    body = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Not on the grid</title>'
        '<link rel="icon" href="static/icon.svg"><link rel="stylesheet" href="static/base.css"></head>'
        '<body><div id="fatal" class="card" role="alert"><h1>This address cannot be shown</h1>'
        f'<p>{html.escape(error.message)}</p><p class="muted">{html.escape(error.hint)}</p>'
        f'<ul>{links}</ul><p><a href="./">Open without an address</a></p></div></body></html>'
    )
    return HTMLResponse(body, status_code=400)


def _corrected(key: str, value: str, bad: str, near: str) -> str:
    if key in ("threshold", "compare") and value == bad:
        return near
    name, colon, text = value.rpartition(":")
    return f"{name}:{near}" if key == "cut" and colon and text == bad else value


# HTTP status for each error; the first type that fits counts. 507: the server cannot store the data.
_STATUS: dict[type[HmsaError], int] = {ConfigError: 400, MarkError: 400}
_STATUS |= {IntegrityError: 409, LockedError: 409, StaleError: 409, SaveError: 507, NoSpaceError: 507, InputError: 404}


async def _on_error(_: Request, error: Exception) -> Response:
    """Error as JSON: its type, one line, a hint, and the neighbours of an off-grid threshold."""
    if isinstance(error, HmsaError):
        found, status = error, next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    else:
        assert isinstance(error, OSError)  # registered for these two types only  # noqa: S101
        # Writers translate an OSError (`saving`), so this one came from reading; no other request avoids it.
        found, status = translate_os_error(error, "reading"), 500
    if status >= 500:
        _LOG.warning("error: %s%s", found.message, f" (hint: {found.hint})" if found.hint else "")
    body: Answer = {"error": type(found).__name__, "message": found.message, "hint": found.hint}
    if isinstance(found, OffGridError):
        body["neighbours"] = list(found.neighbours)
    return JSONResponse(body, status_code=status)


async def _on_http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": "NotFound", "message": "nothing here", "hint": ""}, status_code=status)


HANDLERS: dict[Any, Callable[[Request, Exception], Any]] = {
    HmsaError: _on_error,
    OSError: _on_error,
    HTTPException: _on_http_error,
}
