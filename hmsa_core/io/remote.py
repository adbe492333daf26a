"""Object stores: a folder at s3://, gs:// or az:// becomes a local tree of links into a cache of objects.

`local_tree` lists a folder once. Each object is a link to a file that does not exist yet; `fetched` downloads the file.
So code that lists, pairs and reads local files needs no change. The name of a cached file is a digest of the object's
address, size and entity tag: a replaced object never takes the place of the listed one.
fsspec's file caches have no limit in bytes. `simplecache` takes a file that a kill left incomplete for whole;
`filecache` returns a replaced object, and rewrites its table of all objects at each fetch.
The libraries handle credentials. Messages hold the code of an error, never its text.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from hmsa_core.io.atomic import digest, open_atomic, read_json, write_bytes, write_json
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, IntegrityError, NoSpaceError, translate_os_error
from hmsa_core.io.locks import FileLock
from hmsa_core.io.trees import new_tree

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
_THREADS = 16  # parallel fetches
_TRIES, _FIRST_WAIT_S = 6, 0.1  # waits of 0.1, 0.2, ... 1.6 s
_CHUNK = 64 << 20  # bytes of one request
_SHARE = 20  # a process measures the whole cache after it has fetched 1/20 of the limit
_CHANGED = "run `prepare` (or the same command) again: it lists the folder anew"

T = TypeVar("T")


# ---- Addresses


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address of an object store (s3://, gs://, az://)."""
    return isinstance(place, str) and "://" in place and not place.startswith("file://")


def check_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ConfigError: another scheme, no bucket, or something that may be a secret. The message never repeats it.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _PACKAGES:
        raise ConfigError(f"{scheme}://: this kind of address is not known", hint="s3://, gs://, az:// or file://")
    bucket, _, key = rest.rstrip("/").partition("/")
    if "@" in bucket or "?" in rest:
        raise ConfigError(
            f"a {scheme}:// address holds a user, a password or a query; addresses are kept in files and logs",
            hint="leave them out: credentials come from the environment or the provider's own files",
        )
    if not bucket or any(part in ("", ".", "..") for part in key.split("/") if key):
        raise ConfigError(f"{url}: expected {scheme}://BUCKET/FOLDER")
    return f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the path of a place that is no object store; file:///data/x is /data/x."""
    text = os.fspath(place)
    if text.startswith("file://"):
        if not text.startswith("file:///"):
            raise ConfigError(f"{text}: expected file:///FOLDER")
        return Path(text.removeprefix("file://"))
    return Path(text)


# ---- Requests


def filesystem(url: str) -> Any:
    """The fsspec file system of an address, one a process."""
    with _opening:  # parallel threads would each make a file system, which takes seconds
        return _filesystem(url.partition("://")[0], os.getpid())


_opening = threading.Lock()


@functools.cache
def _filesystem(scheme: str, _process: int) -> Any:
    import fsspec  # torch brings it

    package = _PACKAGES[scheme]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        extra = "'hmsa-autolabel[remote]'" if scheme == "s3" else package
        raise ConfigError(f"{scheme}:// needs the package {package}", hint=f"pip install {extra}") from error
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":  # `request` retries: nested retries would multiply the waits
        once = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}}
        once["max_pool_connections"] = 2 * _THREADS
        options |= {"config_kwargs": once, "default_cache_type": "none"}
    made = fsspec.filesystem(scheme, **options)
    made.retries = 1
    if scheme == "s3":
        made.connect()
    return made


def request(url: str, what: Callable[[Any], T]) -> T:
    """Call `what` with the file system of an address; failures that may pass are tried again, with growing waits.

    Raises:
        FileNotFoundError, FileExistsError: as the file system says, for the caller to judge.
        InputError: no permission, credentials, bucket or connection, in one line.
    """
    files = filesystem(url)
    for attempt in range(_TRIES):
        try:
            return what(files)
        except (HmsaError, FileExistsError):
            raise
        except Exception as error:  # errors of three libraries share no class
            code = _code(error)
            if code is None:
                raise
            if code == "PreconditionFailed":
                raise FileExistsError(url) from error
            if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                raise
            if (refusal := _permanent(url, error, code)) is not None:
                raise refusal from error
            if attempt + 1 == _TRIES:
                raise InputError(
                    f"{url}: no answer after {_TRIES} tries ({code})",
                    hint="run the same command again once the connection stands: finished work is kept",
                ) from error
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError


def _code(error: BaseException) -> str | None:
    """Return the code or class of an error of a file system; None for an HmsaError."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if isinstance(response, Mapping):
        return str(response.get("Error", {}).get("Code", "")) or type(error).__name__
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _LIBRARIES:
        return type(error).__name__
    return None


_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs", "fsspec"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_FINAL = {"InvalidBucketName", "InvalidArgument", "MethodNotAllowed", "KeyTooLongError", "400", "ParamValidationError"}


def _permanent(url: str, error: BaseException, code: str) -> InputError | None:
    """Return the error to raise where no second try can help, else None."""
    if code == "NoSuchBucket":
        return InputError(f"{url}: there is no such bucket", hint="correct the address")
    if code in _EXPIRED:
        return InputError(f"{url}: the credentials have expired ({code})", hint="renew them and run the same command")
    if code in _REGION:
        return InputError(f"{url}: the bucket lies in another region ({code})", hint="set AWS_REGION to the bucket's")
    if code in _NO_CREDENTIALS:
        return InputError(f"{url}: no credentials were found ({code})", hint="log in with the provider's own tool")
    if isinstance(error, PermissionError) or code in ("AccessDenied", "Forbidden", "403"):
        return InputError(
            f"{url}: no permission ({code})", hint="the credentials in use need the right to read, list or write there"
        )
    hint = "renew the credentials if they have expired, else correct the address"
    return InputError(f"{url}: refused ({code})", hint=hint) if code in _FINAL else None


def read(url: str) -> bytes:
    """All bytes of a small object; FileNotFoundError where there is none."""
    return request(url, lambda fs: bytes(fs.cat_file(url, start=0)))  # without `start`, the size is requested first


def create(url: str, data: bytes, *, replaces: str = "") -> bool:
    """Put an object that must not exist (or must still have the entity tag `replaces`); True if it now holds `data`.

    A connection can break after the put was done. So a refusal is no proof: the object is read and compared.
    """
    options: dict[str, Any] = {"mode": "overwrite" if replaces else "create"}
    if url.startswith("s3://"):  # conditions apply to single requests only
        options |= {"chunksize": 2 << 30} | ({"IfMatch": replaces} if replaces else {})
    try:
        request(url, lambda fs: fs.pipe_file(url, data, **options))
    except FileExistsError:
        return read(url) == data
    return True


def put(url: str, path: Path) -> None:
    """Put a local file; an object of this name is replaced."""
    request(url, lambda fs: fs.put_file(str(path), url))


# ---- The cache


def cache_folder() -> Path:
    """Folder of fetched objects: AUTOLABEL_CACHE, else the user's cache folder."""
    given = os.environ.get("AUTOLABEL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(given) if given else Path(base) / "hmsa-autolabel").expanduser().resolve()


def cache_limit() -> int:
    """Bytes of fetched objects that are kept: AUTOLABEL_CACHE_GB (10^9 bytes), 50 by default."""
    text = os.environ.get("AUTOLABEL_CACHE_GB", "50")
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise ConfigError(f"AUTOLABEL_CACHE_GB is {text!r}, expected a number of gigabytes above 0")
    return limit


def local_place(url: str) -> Path:
    """Local folder of an address, `CACHE/trees/DIGEST/NAME`; `DIGEST/source.json` names the parent address."""
    parent, _, name = check_url(url).rpartition("/")
    folder = cache_folder() / "trees" / digest(parent)[:24]
    if not (folder / "source.json").is_file():
        write_json(folder / "source.json", {"url": parent})
    return folder / name


def local_tree(url: str, *, anew: bool = True) -> Path:
    """List a folder into a local tree of links; JSON files at its top are fetched at once.

    Args:
        url: address of a folder.
        anew: list the folder again although a tree exists; else the earlier list of objects stays valid.

    Raises:
        InputError: the folder is empty, or holds names that no file system allows.
    """
    url, target = check_url(url), local_place(url)
    if not anew and target.is_dir():
        return target
    try:
        listed = request(url, lambda fs: fs.find(url, detail=True))
    except FileNotFoundError:
        listed = {}
    base = url.partition("://")[2] + "/"
    objects = {path.removeprefix(base): info for path, info in listed.items() if path.startswith(base) and path != base}
    objects = {name: info for name, info in objects.items() if not name.endswith("/")}  # consoles' folder marks
    if not objects:
        raise InputError(f"{url}: there is no such folder, or nothing in it", hint="correct the address")
    with new_tree(target) as folder:
        made: set[Path] = set()
        for name, info in objects.items():
            _link(url, folder, name, _object(f"{url}/{name}", info), made)
    for name in objects:
        if name.endswith(".json") and "/" not in name:
            write_bytes(target / name, fetched(target / name).read_bytes())  # replaces the link
    return target


def _link(url: str, folder: Path, name: str, cached: Path, made: set[Path]) -> None:
    path = folder / name
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(f"{url}/{name}: no file can have this name", hint="rename the object")
    try:
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.symlink_to(cached)
    except OSError as error:
        raise translate_os_error(error, f"{url}/{name}: making a link to the cache at") from error


def _object(url: str, info: Mapping[str, Any]) -> Path:
    """File of an object in the cache."""
    tag = next((str(info[k]).strip('"') for k in ("ETag", "etag", "generation", "mtime") if info.get(k)), "")
    name = digest([url, tag])
    return cache_folder() / "objects" / name[:2] / f"{name}-{int(info['size'])}.object"


def fetched(path: Path) -> Path:
    """Return the path; for a link of `local_tree`, fetch its object into the cache first.

    Raises:
        IntegrityError: the object is gone or has changed since it was listed.
        NoSpaceError: it does not fit into the cache.
    """
    if not path.is_symlink():
        return path
    cached = path.readlink()
    if cached.suffix != ".object":
        return path
    try:
        os.utime(cached)  # a recent time: eviction removes this file last
    except FileNotFoundError:
        _fetch(_url_of(path), cached)
    return path


def _url_of(path: Path) -> str:
    inside = path.relative_to(cache_folder() / "trees")
    source = read_json(cache_folder() / "trees" / inside.parts[0] / "source.json")["url"]
    return f"{source}/{PurePosixPath(*inside.parts[1:])}"


def _fetch(url: str, cached: Path) -> None:
    size = int(cached.stem.rpartition("-")[2])
    _make_room(url, size)
    try:
        with open_atomic(cached) as out:
            for start in range(0, size, _CHUNK):
                out.write(_part(url, start, min(start + _CHUNK, size)))
            if _object(url, request(url, lambda fs: fs.info(url))) != cached:
                raise IntegrityError(f"{url}: has changed since it was listed", hint=_CHANGED)
    except FileNotFoundError as error:
        raise IntegrityError(f"{url}: was removed after it was listed", hint=_CHANGED) from error
    except OSError as error:
        raise translate_os_error(error, "filling the cache at") from error
    finally:
        with _room:
            _under_way[cache_folder()] -= size


def _part(url: str, start: int, end: int) -> bytes:
    def get(files: Any) -> bytes:
        data: bytes = files.cat_file(url, start=start, end=end)
        if len(data) != end - start:  # truncated, or the object was replaced
            if files.info(url)["size"] < end:
                raise IntegrityError(f"{url}: has changed since it was listed", hint=_CHANGED)
            raise ConnectionError
        return data

    return request(url, get)


_room = threading.Lock()
_granted: dict[Path, int] = {}  # bytes that this process may fetch before it measures the cache again
_under_way: Counter[Path] = Counter()  # bytes of the objects that this process is fetching now


def _make_room(url: str, size: int) -> None:
    """Remove the least recently used files. Each further process may exceed the limit by a twentieth."""
    folder, limit = cache_folder(), cache_limit()
    if size > limit * (_SHARE - 2) // _SHARE:
        raise NoSpaceError(f"{url}: {size / 1e9:.3f} GB do not fit into the cache of {limit / 1e9:g} GB", hint=_MORE)
    with _room:
        if _granted.get(folder, 0) < size:
            with FileLock(folder / "cache.lock", what=f"cache {folder}", wait_s=600.0):
                _granted[folder] = max(size, limit // _SHARE)
                taken = _granted[folder] + _under_way[folder]
                _evict(folder / "objects", limit * (_SHARE - 1) // _SHARE - taken)
        _granted[folder] -= size
        _under_way[folder] += size


_MORE = "raise AUTOLABEL_CACHE_GB, or let AUTOLABEL_CACHE name a folder on a larger disk"


def _evict(objects: Path, most: int) -> None:
    """Shrink the cache to `most` bytes."""
    found = []
    for path in objects.glob("*/*.object"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        found.append((state.st_mtime_ns, state.st_size, path))
    excess = sum(size for _, size, _ in found) - most
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def ahead(items: Iterable[T], files: Callable[[T], Iterable[Path]]) -> Generator[T]:
    """Yield items in order, each after its files were fetched; files of the next items are fetched in parallel.

    An error of a single file is left to the file's reader. Any other error ends the run here.
    """
    with ThreadPoolExecutor(_THREADS, "fetch") as pool:
        waiting: deque[tuple[T, list[Future[Path]]]] = deque()
        try:
            for item in items:
                away = [path for path in files(item) if path.is_symlink()]
                waiting.append((item, [pool.submit(fetched, path) for path in away]))
                if len(waiting) > (2 * _THREADS if away else 0):
                    yield _here(*waiting.popleft())
            while waiting:
                yield _here(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _here(item: T, files: list[Future[Path]]) -> T:
    for file in files:
        error = file.exception()
        if error is not None and not isinstance(error, IntegrityError):
            raise error
    return item


def local_folder(place: str | os.PathLike[str], *, without: str = "") -> Path:
    """A checkpoint or a label store as a local folder; one at an address is fetched whole, again after a change.

    Args:
        place: a folder or an address.
        without: pattern of names of files that are not fetched.

    Raises:
        NoSpaceError: the folder is larger than the cache.
    """
    if not is_url(place):
        return local_path(place)
    tree = local_tree(str(place))
    paths = [path for path in sorted(tree.rglob("*")) if path.is_symlink() and not path.match(without or "/")]
    for path in ahead(paths, lambda path: [path]):
        fetched(path)
    if any(not path.exists() for path in paths):
        raise NoSpaceError(f"{place}: larger than the cache ({cache_limit() / 1e9:g} GB)", hint=_MORE)
    return tree
