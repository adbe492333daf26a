"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder.

POSIX promises nothing about bytes that were not synced before power was lost, so callers that
need certainty keep the SHA-256 that the functions here return. All file operations go through the
object `ops`, so that a test can make the n-th operation fail and check the files left on disk.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from hmsa_core.io.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
_TEMP = re.compile(r"^\.(?P<name>.+)\.(?P<pid>\d+)-(?P<process>[0-9a-f]{4})[0-9a-f]{4}\.tmp$")
_PROCESS = secrets.token_hex(2)  # in containers an earlier process may have had the same id


class FileOps:
    """The file operations that matter for crash safety, one method each (replaceable in tests)."""

    def open_new(self, path: Path) -> IO[bytes]:
        """Create `path`, which must not exist, for writing."""
        return path.open("xb")

    def write(self, file: IO[bytes], data: bytes | memoryview) -> int:
        """Write all of `data`."""
        return file.write(data)

    def fsync(self, file: IO[bytes]) -> None:
        """Flush Python's and the kernel's buffers of an open file to the device."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` in one step."""
        source.replace(target)

    def exchange(self, one: Path, other: Path) -> None:
        """Swap two folders of one file system in one step (Linux; ENOSYS elsewhere)."""
        swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if swap is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other))
        if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(other))

    def link(self, source: Path, target: Path) -> None:
        """Make `target` a second name of `source`."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Remove one name of a file."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Create a folder and its parents."""
        path.mkdir(parents=True, exist_ok=True)

    def fsync_dir(self, path: Path) -> None:
        """Make renames and links inside a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


ops = FileOps()


def temp_name(path: Path) -> Path:
    """Return a new name in the folder of `path` that `sweep_temps` recognises."""
    # Same folder as the target: rename must not cross a file system. By the process id, a later start
    # distinguishes leftovers of dead writers from files of living writers.
    return path.with_name(f".{path.name}.{os.getpid()}-{_PROCESS}{secrets.token_hex(2)}.tmp")


def make_folder(path: Path) -> None:
    """Create a folder with its parents, each durable: a synced file in a folder that is lost is lost."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    if missing:
        ops.mkdir(missing[0])
        for folder in reversed(missing):
            ops.fsync_dir(folder.parent)


class AtomicFile:
    """A writable binary file object that hashes all written bytes and becomes visible only on commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent)
        self._temp = temp_name(path)
        self._file = ops.open_new(self._temp)
        self._hash = hashlib.sha256()
        self._size = 0

    @property
    def closed(self) -> bool:
        """Whether the file was committed or aborted."""
        return self._file.closed

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of everything written so far."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Return True: the file is an output (pyarrow calls this)."""
        return True

    def readable(self) -> bool:
        """Return False: the file is no input."""
        return False

    def seekable(self) -> bool:
        """Return False: the digest needs writes in order."""
        return False

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write bytes and add them to the digest."""
        view = memoryview(data).cast("B")
        ops.write(self._file, view)
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        """Flush Python's buffer (durability comes with `commit`)."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Do nothing: only `commit` publishes and only `abort` discards (writers call close)."""

    def commit(self) -> str:
        """Sync, rename, sync the folder; return the hex SHA-256."""
        ops.fsync(self._file)
        self._file.close()
        ops.rename(self._temp, self.path)
        ops.fsync_dir(self.path.parent)
        return self.sha256

    def abort(self) -> None:
        """Remove the temporary file; the target keeps its old state."""
        with suppress(OSError):  # a full disk fails again on close; only the old state matters
            self._file.close()
        self._temp.unlink(missing_ok=True)


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[AtomicFile]:
    """Yield a binary file that replaces `path` when the block ends without an error."""
    file = AtomicFile(Path(path))
    try:
        yield file
        file.commit()
    except BaseException:
        file.abort()
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> str:
    """Write a whole file atomically; return its hex SHA-256."""
    with open_atomic(path) as file:
        file.write(data)
    return file.sha256


def write_text(path: str | os.PathLike[str], text: str) -> str:
    """Write a UTF-8 text file atomically; return its hex SHA-256."""
    return write_bytes(path, text.encode("utf-8"))


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def digest(value: object) -> str:
    """Hex SHA-256 of `canonical_json(value)`: the key of the work that `value` describes."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def write_json(path: str | os.PathLike[str], value: object, *, indent: int | None = 1) -> str:
    """Write JSON atomically (sorted keys, trailing newline, NaN refused); return its hex SHA-256."""
    text = json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; an IntegrityError names a truncated or foreign file."""
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse the JSON object in the bytes of `where`, a file or an address; an IntegrityError names `where`."""
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, NaN, nested without end
        raise IntegrityError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which JSON lacks: this package never writes them, and digests refuse them."""
    raise ValueError(f"{name} is no JSON number")


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex SHA-256 of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_file(source: Path, target: Path) -> None:
    """Give a finished file a second name (hard link; a copy if links are impossible).

    A published file is never opened for writing again. The link appears by rename, so that an
    existing target is replaced in one step. For a symbolic link, the file behind the link gets the name:
    `dvc gc` removes files of DVC's cache, which links of `cache.type symlink` point to.
    """
    source = source.resolve()
    make_folder(target.parent)
    temp = temp_name(target)
    try:
        ops.link(source, temp)
        ops.rename(temp, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK or temp.exists():
            raise
        with open_atomic(target) as out, source.open("rb") as file:
            shutil.copyfileobj(file, out, 1 << 20)
        return
    finally:
        # rename(2) of two names of the same file does nothing and leaves both names.
        temp.unlink(missing_ok=True)
    ops.fsync_dir(target.parent)


_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def remove_tree(path: Path) -> None:
    """Remove a temporary folder if it exists."""
    if path.exists():
        shutil.rmtree(path)


def sweep_temps(folder: Path) -> list[Path]:
    """Remove temporary files and folders that dead writers left below `folder`; return what was removed."""
    found = [path for path in sorted(folder.rglob(".*.tmp")) if is_left_over(path.name)] if folder.exists() else []
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return found


def is_temp(name: str, of: str | None = None) -> bool:
    """Whether `temp_name` gave this name (to a file or folder called `of`)."""
    match = _TEMP.match(name)
    return match is not None and of in (None, match["name"])


def is_left_over(name: str) -> bool:
    """Whether a dead writer left a temporary file of this name."""
    match = _TEMP.match(name)
    if match is None:
        return False
    if int(match["pid"]) == os.getpid():
        return match["process"] != _PROCESS
    return not _is_alive(int(match["pid"]))


def _is_alive(pid: int) -> bool:
    state = ""  # on a system without /proc
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    # A zombie (in containers whose first process does not reap): it writes no more.
    return state not in ("Z", "X")
