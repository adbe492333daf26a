"""The answer to a request that fails: {error, message, hint} as JSON; a failing disk is told in the terminal, too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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
from pipeline.inspector.cuts import OffGridError
from pipeline.inspector.view import StaleError

__all__ = ["HANDLERS"]

_LOG = logging.getLogger(__name__)


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
