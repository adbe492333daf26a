"""The job's log: one JSON object a line, written by rank 0, readable while the job runs.

Lines are appended in place (a log that is rewritten for each line would cost more than the training of a
small model); a kill can therefore leave half a line at the end, which the next start removes. Nothing
that a result depends on is read from here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import write_bytes

__all__ = ["JsonLog", "read_log"]


def _jsonable(value: Any) -> Any:
    # JSON has no NaN: a figure that does not exist is null.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


class JsonLog:
    """Append-only JSON lines; without a path (all ranks but the first) writing does nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_end(path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line {"event": ..., "time": unix seconds, fields...}."""
        if self.path is None:
            return
        line = json.dumps(
            {"event": event, "time": round(time.time(), 3), **_jsonable(fields)},
            sort_keys=True,
            ensure_ascii=False,
            allow_nan=False,
        )
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")

    def rewind(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Forget lines about what a resumed run does again."""
        if self.path is None or not self.path.exists():
            return
        kept = [line for line in read_log(self.path) if is_kept(line)]
        text = "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in kept)
        write_bytes(self.path, text.encode())


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a log, without a torn last line."""
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)


def _drop_torn_end(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        write_bytes(path, data[: data.rfind(b"\n") + 1])
