"""Checking every byte of a store, all at once or in slices, and naming what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hmsa_core.io import sealed
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.engine import HERE, Engine
from hmsa_core.io.errors import ConfigError, StoreError
from hmsa_core.labels.store.format import SIDECAR, listed_files


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store."""

    file: str
    kind: str  # missing | torn | changed | swapped | renamed | unlisted
    message: str

    def __str__(self) -> str:
        return self.message


def parse_subset(text: str) -> tuple[int, int]:
    """Read "n/t" with 1 <= n <= t."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"subset {text!r} is not n/t with 1 <= n <= t", hint="for example 1/7, 2/7, ... 7/7")
    return int(match[1]), int(match[2])


def verify_store(root: Path, manifest: Mapping[str, Any], subset: str = "1/1", engine: Engine = HERE) -> list[Problem]:
    """Everything that is wrong with the files of a store whose manifest was read and is whole."""
    n, of = parse_subset(subset)
    digests = _file_digests(manifest)
    receipts = {s["receipt"]["file"]: s["receipt"]["digest"] for s in manifest["shards"]}
    mine = sorted([*digests, *receipts])[n - 1 :: of]
    unlisted = _unlisted(root, manifest) if n == 1 else {}
    by_digest = {sha256: file for file, sha256 in digests.items()}
    check = partial(_check, root, digests, receipts, by_digest, unlisted)
    problems = [problem for problem in engine.map(check, mine, what="checks files", batch=16) if problem]
    return problems + [_unlisted_problem(root, file, sha256, by_digest) for file, sha256 in unlisted.items()]


def _file_digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    records = [r for s in manifest["shards"] for r in (s, s["sidecar"])]
    records += [*manifest["statistics"].values(), *manifest["extras"]]
    return {r["file"]: r["sha256"] for r in records}


def _unlisted(root: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Digest of each visible file below the store that the manifest does not list."""
    listed = set(listed_files(manifest))
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)  # locks, leftovers of killed writers
        if path.is_file() and not hidden and relative.as_posix() not in listed:
            found[relative.as_posix()] = sha256_file(path)
    return found


def _check(
    root: Path,
    digests: dict[str, str],
    receipts: dict[str, str],
    by_digest: dict[str, str],
    unlisted: dict[str, str],
    file: str,
) -> Problem | None:
    if file in digests:
        return _check_file(root, file, digests[file], by_digest, unlisted)
    return _check_receipt(root, file, receipts[file])


def _check_file(
    root: Path, file: str, expected: str, by_digest: dict[str, str], unlisted: dict[str, str]
) -> Problem | None:
    path = root / file
    if not path.is_file():
        moved = [other for other, sha256 in unlisted.items() if sha256 == expected]
        if moved:
            return Problem(file, "renamed", f"{path}: missing; its content lies in {moved[0]} (renamed)")
        return Problem(file, "missing", f"{path}: missing")
    actual = sha256_file(path)
    if actual == expected:
        return None
    if actual in by_digest:
        return Problem(file, "swapped", f"{path}: holds the content of {by_digest[actual]} (swapped or copied)")
    return Problem(file, "changed", f"{path}: changed or torn (sha256 is {actual}, recorded {expected})")


def _check_receipt(root: Path, file: str, expected: str) -> Problem | None:
    try:
        receipt = sealed.read(root / file)
    except StoreError as error:
        return Problem(file, "changed" if (root / file).exists() else "missing", error.message)
    if receipt["digest"] != expected:
        return Problem(file, "swapped", f"{root / file}: is another receipt (digest {receipt['digest']}, {expected})")
    return None


def _unlisted_problem(root: Path, file: str, sha256: str, by_digest: dict[str, str]) -> Problem:
    same = f"; it has the content of {by_digest[sha256]}" if sha256 in by_digest else ""
    if file.startswith(f"{SIDECAR}/") and not same:
        same = "; it may be left over from a killed writer"
    return Problem(file, "unlisted", f"{root / file}: not in the manifest{same}")
