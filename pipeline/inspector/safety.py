"""What keeps other people and other web pages out: checks before, and headers after, every request.

- Host: only names that this server goes by, so that a foreign name pointed at 127.0.0.1 (DNS rebinding) gets nothing.
- Origin: a request that a browser sends for another page is refused, `null` included.
- Writing: POST only, with the token of this process in a header that no other page can read or send.
- With `--token` (and always beyond loopback) reading needs the token too, by bearer header or cookie.
- Headers: a content policy without inline code, no sniffing, no framing, no sharing across origins.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "SafetyMiddleware", "is_loopback"]

TOKEN_HEADER = "x-autolabel-token"  # noqa: S105 - a header's name
BODY_LIMIT = 1 << 20  # bytes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
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
    """Who may talk to this server.

    Attributes:
        host: address that the server listens on.
        token: secret of this process; needed for every write.
        demands_token: reading needs it as well.
        names: further host names that people reach this server by.
    """

    host: str = "127.0.0.1"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    demands_token: bool = False
    names: tuple[str, ...] = ()

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
        # Beyond loopback people come by number as well; a number cannot be rebound by DNS.
        return address.is_loopback or not is_loopback(self.host)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a browser's Origin is this server itself."""
        return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")

    def is_token(self, given: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode("utf-8"))

    @property
    def cookie_name(self) -> str:
        """Name of the cookie; cookies know no ports, so two servers of one machine need two names."""
        return f"autolabel-{self.cookie[:8]}"

    @property
    def cookie(self) -> str:
        """What the browser remembers instead of the token itself."""
        return hashlib.sha256(b"autolabel cookie\0" + self.token.encode("utf-8")).hexdigest()

    def has_read_access(self, headers: Headers) -> bool:
        """Whether a request may read."""
        if not self.demands_token:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if (kind.lower() == "bearer" and self.is_token(given)) or self.is_token(headers.get(TOKEN_HEADER, "")):
            return True
        return any(hmac.compare_digest(given.encode(), self.cookie.encode()) for given in self._cookies(headers))

    def _cookies(self, headers: Headers) -> list[str]:
        """Values of our cookie; those of other programs of this host may be written as no parser expects."""
        pairs = [pair.partition("=") for header in headers.getlist("cookie") for pair in header.split(";")]
        return [value.strip() for name, _, value in pairs if name.strip() == self.cookie_name]


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": "Refused", "message": message, "hint": ""}, status_code=status)


class SafetyMiddleware:
    """Wraps the whole application: nothing reaches a route that the guard does not let through."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, hand on, and add headers to the answer."""
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
        """The answer to a request that must not pass; None lets it through."""
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
        """`/?token=...` sets the cookie once and takes the token out of the address; all else is refused."""
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = query.pop("token", [""])
        if scope["path"] == "/" and scope["method"] == "GET" and self._guard.is_token(given[0]):
            rest = "&".join(f"{quote(k)}={quote(v)}" for k, values in query.items() for v in values)
            answer = RedirectResponse("./" + (f"?{rest}" if rest else ""), status_code=303)
            # "lax": a link from another page may open this one, nothing else from there may.
            answer.set_cookie(self._guard.cookie_name, self._guard.cookie, httponly=True, samesite="lax", path="/")
            return answer
        how = "open /?token=TOKEN once, or send Authorization: Bearer TOKEN"
        return _refuse(401, f"this server asks for its token: {how}")
