"""Who opens a file for writing? The kernel tells by inode, whoever does it, root included."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_MODIFY, _CLOSE_WRITE = 0x2, 0x8  # <sys/inotify.h>
_EVENT = struct.Struct("iIII")


class Watch:
    """Files of which every write, and every end of an opening for writing, is noted until the block ends.

    An inotify watch is bound to the inode: it sees the file through all of its hard links, and does not see a new
    file that takes the old one's name.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = list(files)
        self._names: dict[int, Path] = {}

    def __enter__(self) -> Watch:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for path in self._files:
            number = libc.inotify_add_watch(self._fd, os.fsencode(path), _MODIFY | _CLOSE_WRITE)
            if number < 0:
                raise OSError(ctypes.get_errno(), f"inotify_add_watch {path}")
            self._names[number] = path
        return self

    def written(self) -> set[Path]:
        """Files that somebody opened for writing since the last question."""
        found = set()
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                if mask & (_MODIFY | _CLOSE_WRITE):
                    found.add(self._names[number])
                at += _EVENT.size + length

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
