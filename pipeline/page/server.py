"""Serve the page: checks that keep other people and other web pages out, and the listening socket.

Checks before every request, and headers after it:

- Host: only this server's names pass, so that a foreign name that resolves to 127.0.0.1 (DNS rebinding) fails.
- Origin: a request that a browser sends for another page is refused, `null` included.
- Writing: POST only, with the token of this process in a header that no other page can read or send.
- With `--token` (and always beyond loopback) reading needs the token too, by bearer header or cookie.
- Headers: a content policy without inline code, no sniffing, no framing, no sharing across origins.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import os
import secrets
import signal
import socket
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmsa_core.io.errors import ConfigError
from pipeline.page.api import HANDLERS, Api, Page
from pipeline.page.files import CONTENT_POLICY
from pipeline.review.session import Session
from pipeline.review.weights import WeightJobs

TOKEN_HEADER = "x-autolabel-token"  # noqa: S105 - a header's name
BODY_LIMIT = 1 << 20  # bytes
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str | None:
    """Host header without its port, in lower case; None when it is not a plain `name[:port]`."""
    name, port = host.strip(), ""
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        port = port[1:]
    elif name.count(":") == 1:
        name, _, port = name.partition(":")
    if not name or (port and not port.isdigit()):
        return None
    return name.lower()


@dataclass(frozen=True)
class Guard:
    """Rules that say which requests this server accepts."""

    host: str = "127.0.0.1"  # address that the server listens on
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))  # of this process; every write needs it
    demands_token: bool = False  # reading needs the token as well
    names: tuple[str, ...] = ()  # further host names of this server

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this server."""
        name = _name_of(header)
        if name is None:
            return False
        if name == "localhost" or name in {n.lower() for n in self.names}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # Beyond loopback people may also use an IP address, which DNS cannot rebind.
        return address.is_loopback or not is_loopback(self.host)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a browser's Origin is this server itself."""
        return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")

    def is_token(self, given: str) -> bool:
        """Whether a text is the token, compared in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode("utf-8"))

    @property
    def cookie_name(self) -> str:
        """Name of the cookie; cookies ignore ports, so two servers of one machine need two names."""
        return f"autolabel-{self.cookie[:8]}"

    @property
    def cookie(self) -> str:
        """Hash of the token, which the browser keeps instead of the token."""
        return hashlib.sha256(b"autolabel cookie\0" + self.token.encode("utf-8")).hexdigest()

    def has_read_access(self, headers: Headers) -> bool:
        """Whether a request may read."""
        if not self.demands_token:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if (kind.lower() == "bearer" and self.is_token(given)) or self.is_token(headers.get(TOKEN_HEADER, "")):
            return True
        # Other programs of this host may set cookies that a strict parser rejects.
        pairs = [pair.partition("=") for header in headers.getlist("cookie") for pair in header.split(";")]
        cookies = [value.strip() for name, _, value in pairs if name.strip() == self.cookie_name]
        return any(hmac.compare_digest(value.encode(), self.cookie.encode()) for value in cookies)


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": "Refused", "message": message, "hint": ""}, status_code=status)


class SafetyMiddleware:
    """Wrap the whole application: only requests that the guard accepts reach a route."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, pass it on, and add headers to the response."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._check(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> Response | None:
        """Response to a request that is refused; None accepts the request."""
        headers, guard = Headers(scope=scope), self._guard
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not guard.allows_host(hosts[0]):
            return _refuse(403, "this server does not go by that host name")
        if not scope["path"].startswith("/") or "\x00" in scope["path"]:
            return _refuse(403, "not a path of this server")
        origins = headers.getlist("origin")
        if any(not guard.allows_origin(origin, hosts[0]) for origin in origins):
            return _refuse(403, "requests from other pages are refused")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _refuse(405, f"method {scope['method']} is not used here")
        if not guard.has_read_access(headers):
            return self._log_in(scope)
        return self._check_write(headers) if scope["method"] == "POST" else None

    def _check_write(self, headers: Headers) -> Response | None:
        if not self._guard.is_token(headers.get(TOKEN_HEADER, "")):
            return _refuse(403, "writing needs this page's token; reload the page")
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _refuse(415, "the body must be application/json")
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > BODY_LIMIT:
            return _refuse(413, f"the body must have a length of at most {BODY_LIMIT} bytes")
        return None

    def _log_in(self, scope: Scope) -> Response:
        """Answer `/?token=TOKEN` with the cookie and a redirect to the address without the token; refuse all else."""
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = query.pop("token", [""])
        if scope["path"] == "/" and scope["method"] == "GET" and self._guard.is_token(given[0]):
            rest = "&".join(f"{quote(k)}={quote(v)}" for k, values in query.items() for v in values)
            answer = RedirectResponse("./" + (f"?{rest}" if rest else ""), status_code=303)
            # "lax": links of other pages send the cookie, so that they can open this page; other requests do not.
            answer.set_cookie(self._guard.cookie_name, self._guard.cookie, httponly=True, samesite="lax", path="/")
            return answer
        text = "open /?token=TOKEN once, or send Authorization: Bearer TOKEN"
        return _refuse(401, f"this server asks for its token: {text}")


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0 = any free port
    token: str | None = None  # also for reading; None on loopback = a random token for writes alone
    checkpoint: Path | None = None  # for scale weights on demand


def make_guard(options: ServeOptions) -> Guard:
    """Make the guard for an address; an address beyond loopback needs a token."""
    if options.token is not None and len(options.token) < 12:
        raise ConfigError("--token: at least 12 characters", hint="for example: --token $(openssl rand -hex 16)")
    if not is_loopback(options.host) and options.token is None:
        raise ConfigError(
            f"--host {options.host} lets other machines in and needs --token TOKEN",
            hint="for example: --token $(openssl rand -hex 16); or stay on loopback and use an SSH tunnel",
        )
    names = () if is_loopback(options.host) else (socket.gethostname(),)
    return Guard(options.host, options.token or secrets.token_urlsafe(24), options.token is not None, names)


def make_app(
    session: Session, guard: Guard, *, weights: WeightJobs | None, foreground: Executor, background: Executor
) -> SafetyMiddleware:
    """Make the application behind its guard; blocking work runs in the two pools."""
    api, page = Api(session, weights, foreground, background), Page(session, guard.token)
    routes = [Route("/", page.page, methods=["GET"]), Route("/static/{file}", page.static, methods=["GET"])]
    app = Starlette(routes=[*routes, *api.routes()], exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    return SafetyMiddleware(app, guard)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # unknown host name, invalid host name, or no such network
        hint = "give a name or an address of this machine, for example --host 0.0.0.0"
        raise ConfigError(f"--host {host}: cannot be used ({error})", hint=hint) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is taken by another program" if is_taken else f"cannot be used ({error})"
        hint = "choose another with --port N, or --port 0 for any"
        raise ConfigError(f"port {port} on {host} {reason}", hint=hint) from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    shown = "127.0.0.1" if address.is_unspecified else host
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


class _Server(uvicorn.Server):
    """Uvicorn server that prints its address once it answers requests."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the address."""
        await super().startup(sockets)
        if self.started:
            sys.stdout.write(f"inspector: {self._url}\n")
            sys.stdout.flush()


def serve(session: Session, options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    # Uvicorn raises the signal again after its shutdown; without a handler the block below would not clean up.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    guard, weights, workers = make_guard(options), None, min(4, os.cpu_count() or 1)
    with ExitStack() as stack:
        if options.checkpoint is not None:
            weights = stack.enter_context(closing(WeightJobs(session.view, options.checkpoint)))
        foreground = stack.enter_context(ThreadPoolExecutor(workers, "inspector"))
        background = stack.enter_context(ThreadPoolExecutor(max(1, workers // 2), "thumbnails"))
        app = make_app(session, guard, weights=weights, foreground=foreground, background=background)
        listener = stack.enter_context(_listen(options.host, options.port))
        query = f"?{urlencode({'token': guard.token})}" if guard.demands_token else ""
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            http="h11",
            ws="none",
            timeout_graceful_shutdown=2,
            proxy_headers=False,
        )
        _Server(config, _address(listener) + query).run([listener])
