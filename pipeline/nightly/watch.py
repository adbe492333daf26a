"""Is the orchestration server still there? A run whose server is dead stops its stage and ends."""

from __future__ import annotations

import urllib.error
import urllib.request

__all__ = ["ServerWatch"]

_REFUSED = 3  # answers "nobody listens" in a row: the server is dead
_SILENT = 60  # other failures in a row (two minutes and more): a busy server or a cut cable is worth waiting for


class ServerWatch:
    """Asks the API's health page; `alive` is called every two seconds.

    Args:
        url: of the API; empty = there is none to watch.
        timeout_s: of one question.
    """

    def __init__(self, url: str | None, *, timeout_s: float = 2.0) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._refused = self._silent = 0

    def alive(self) -> bool:
        """False once the server refused three times in a row, or failed in another way for minutes."""
        if not self.url:
            return True
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=self.timeout_s):  # noqa: S310 - Prefect's own API
                self._refused = self._silent = 0
        except urllib.error.HTTPError as error:
            # "Not found" or "log in first" is said by somebody; a gateway says 5xx for a server that is gone.
            self._refused, self._silent = 0, 0 if error.code < 500 else self._silent + 1
        except OSError as error:  # URLError is one
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ConnectionRefusedError):
                self._refused += 1
            else:
                self._refused, self._silent = 0, self._silent + 1
        return self._refused < _REFUSED and self._silent < _SILENT
