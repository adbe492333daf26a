"""Starts the page: socket first (so that a taken port is one clear line), then uvicorn in this process."""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import sys
import threading
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import uvicorn

from hmsa_core.io.errors import ConfigError
from pipeline.inspector.api import make_app
from pipeline.inspector.safety import Guard, SafetyMiddleware, is_loopback
from pipeline.inspector.session import Session
from pipeline.inspector.weights import WeightJobs

__all__ = ["DEFAULT_PORT", "ServeOptions", "make_guard", "open_app", "serve"]

DEFAULT_PORT = 8733


@dataclass(frozen=True)
class ServeOptions:
    """How the page is served.

    Attributes:
        host: address to listen on.
        port: port; 0 = any free one.
        token: secret that reading needs as well; None on loopback = a random one for writes alone.
        names: further host names that the server goes by.
        checkpoint: for scale weights on demand.
        open_browser: open the page once the server listens.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    names: tuple[str, ...] = field(default=())
    checkpoint: Path | None = None
    open_browser: bool = False


def make_guard(options: ServeOptions) -> Guard:
    """The guard for an address; beyond loopback a token is demanded."""
    if options.token is not None and len(options.token) < 12:
        raise ConfigError("--token: at least 12 characters", hint="for example: --token $(openssl rand -hex 16)")
    if not is_loopback(options.host) and options.token is None:
        raise ConfigError(
            f"--host {options.host} lets other machines in and needs --token TOKEN",
            hint="for example: --token $(openssl rand -hex 16); or stay on loopback and use an SSH tunnel",
        )
    names = (*options.names, *(() if is_loopback(options.host) else (socket.gethostname(),)))
    return Guard(options.host, options.token or secrets.token_urlsafe(24), options.token is not None, names)


def open_app(session: Session, options: ServeOptions, stack: ExitStack) -> tuple[SafetyMiddleware, Guard]:
    """Build the application; `stack` closes its pools and temporary files."""
    guard = make_guard(options)
    weights = None
    if options.checkpoint is not None:
        weights = WeightJobs(session.view, options.checkpoint)
        stack.callback(weights.close)
    workers = min(4, os.cpu_count() or 1)
    foreground = stack.enter_context(ThreadPoolExecutor(workers, "inspector"))
    background = stack.enter_context(ThreadPoolExecutor(max(1, workers // 2), "thumbnails"))
    return make_app(session, guard, weights=weights, foreground=foreground, background=background), guard


def _listen(host: str, port: int) -> socket.socket:
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:  # no such name; none that could be one
        hint = "give a name or an address of this machine, for example --host 0.0.0.0"
        raise ConfigError(f"--host {host}: cannot be looked up ({error})", hint=hint) from None
    family, kind, protocol, _, address = found[0]
    try:
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"cannot be used ({error})"
        hint = "choose another with --port N, or --port 0 for any"
        raise ConfigError(f"port {port} on {host} {why}", hint=hint) from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    shown = "127.0.0.1" if address.is_unspecified else host
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


class _Server(uvicorn.Server):
    """uvicorn, telling where it listens once it really answers."""

    def __init__(self, config: uvicorn.Config, url: str, *, open_browser: bool) -> None:
        super().__init__(config)
        self._url, self._open = url, open_browser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            sys.stdout.write(f"inspector: {self._url}\n")
            sys.stdout.flush()
            if self._open:
                threading.Thread(target=webbrowser.open, args=(self._url,), daemon=True).start()


def serve(session: Session, options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    with ExitStack() as stack:
        app, guard = open_app(session, options, stack)
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
        _Server(config, _address(listener) + query, open_browser=options.open_browser).run([listener])
