"""JSON files that contain their SHA-256: manifests, receipts, policies, curves.

The first line is `{"digest":"<64 hex digits>",`; the digest is that of all bytes after that line's
newline. So a reader in any language can check the file without a canonical form of JSON. Every changed bit is detected:
in the first line by its fixed form, elsewhere by the digest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import canonical_json, sha256_bytes, write_bytes
from hmsa_core.io.errors import StoreError

_HEAD = re.compile(rb'\A\{"digest":"([0-9a-f]{64})",\n')


def dump(value: dict[str, Any]) -> bytes:
    """Bytes of a sealed file: sorted keys, one top-level key per line, one element per line in lists of objects.

    An existing key `digest`, from an earlier read, is replaced.
    """
    items = sorted((key, item) for key, item in value.items() if key != "digest")
    if not items:
        raise ValueError("a sealed object needs a key besides 'digest'")
    body = b",\n".join(canonical_json(k) + b":" + _lines(v) for k, v in items) + b"}\n"
    return b'{"digest":"' + sha256_bytes(body).encode("ascii") + b'",\n' + body


def _lines(value: object) -> bytes:
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return b"[\n" + b",\n".join(map(canonical_json, value)) + b"]"
    return canonical_json(value)


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Check and read sealed bytes; the result has the key `digest` too. StoreError: other or damaged bytes."""
    head = _HEAD.match(data)
    if not head:
        raise StoreError(f"{where}: not one of our files, or its first line is damaged")
    expected, actual = head[1].decode("ascii"), sha256_bytes(data[head.end() :])
    if actual != expected:
        raise StoreError(
            f"{where}: damaged or edited (digest is {actual}, recorded {expected})",
            hint="put the original back, or make it again; in a workspace `autolabel doctor` says how",
        )
    try:
        value: dict[str, Any] = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{where}: digest matches but it is not valid JSON ({error})") from error
    return value


def read(path: Path) -> dict[str, Any]:
    """Read and check a sealed file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    return parse(data, str(path))


def read_as(path: str | Path, what: str, kind: tuple[str, int], hint: str = "") -> dict[str, Any]:
    """Read a sealed file whose `format` and `version` are `kind`; of another kind it is a StoreError: not WHAT."""
    value = read(Path(path))
    found = value.get("format"), value.get("version")
    if found != kind:
        raise StoreError(f"{path}: not {what} of version {kind[1]} (found {found[0]} {found[1]})", hint=hint)
    return value


def digest_of(value: dict[str, Any]) -> str:
    """Digest of the sealed file that holds a value."""
    return _digest(dump(value))


def _digest(data: bytes) -> str:
    return data[11:75].decode("ascii")


def write(path: Path, value: dict[str, Any]) -> str:
    """Write a sealed file atomically; return its digest."""
    data = dump(value)
    write_bytes(path, data)
    return _digest(data)
