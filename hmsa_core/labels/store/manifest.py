"""The manifest: commit point of a store, with lineage and the digest of every file and of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic, sealed
from hmsa_core.io.atomic import read_json, sha256_file, sweep_temps
from hmsa_core.io.errors import ConfigError, IntegrityError, StoreError
from hmsa_core.io.trees import publish_tree
from hmsa_core.labels.store import schema
from hmsa_core.labels.store.codes import EDGES
from hmsa_core.labels.store.plans import ShardPlan
from hmsa_core.labels.store.receipts import read_receipt, receipt_path
from hmsa_core.labels.store.sidecar import consolidate
from hmsa_core.taxonomy import ClassTable, cityscapes

__all__ = [
    "binding",
    "full_lineage",
    "listed_files",
    "publish_store",
    "read_manifest",
    "refuse_in_store",
    "write_manifest",
]

# What every store says about where its labels come from. Absent entries are recorded as unknown.
LINEAGE = ("teacher", "parameters", "scales", "flip", "precision", "code_version", "licences")
_BINDING = ("teacher", "scales", "flip", "precision")
UNKNOWN = "unknown"


def full_lineage(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage with "unknown" for each absent entry of LINEAGE; further entries are kept."""
    return {**dict.fromkeys(LINEAGE, UNKNOWN), **lineage}


def binding(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a policy is bound to: teacher hash, scales, flip, precision; average or max where it is one.

    Those two fuse the scales of the same weights as a single-scale model, whose hash is theirs.
    """
    full = full_lineage(lineage)
    scales, parameters = full["scales"], full["parameters"]
    kind = parameters.get("kind") if isinstance(parameters, Mapping) else None
    return {
        **{k: full[k] for k in _BINDING},
        "scales": sorted(float(s) for s in scales) if isinstance(scales, (list, tuple)) else scales,
        **({"kind": kind} if kind in ("average", "max") else {}),
    }


def write_manifest(
    store: str | Path,
    plans: Sequence[ShardPlan],
    lineage: Mapping[str, Any],
    *,
    classes: ClassTable | None = None,
    policy: Mapping[str, Any] | None = None,
    extras: Sequence[str] = (),
) -> str:
    """Consolidate the sidecars and commit the store; return the manifest's digest.

    Args:
        store: folder of the store; every plan must have its receipt.
        plans: the shards in order.
        lineage: any JSON object; see LINEAGE for the entries that readers look for.
        classes: class table; default: Cityscapes. Must be the one that the shards were written with.
        policy: of a thresholded store: digest of the policy, of the raw store, rules.
        extras: further files in the folder that belong to the store (their digests go in too).

    Raises:
        StoreError: a shard is missing, of another plan, or written with other classes.
    """
    root, table = Path(store), classes or cityscapes()
    sweep_temps(root)
    receipts = [read_receipt(root, plan) for plan in plans]
    kinds = {(r["kind"], r["codec"], r["classes_sha256"]) for r in receipts} or {("raw", "png", table.digest())}
    if len(kinds) > 1 or next(iter(kinds))[2] != table.digest():
        raise StoreError(f"{root}: its shards differ in kind, codec or class table", hint="make the store again")
    kind, codec, _ = next(iter(kinds))
    statistics = consolidate(root, receipts, table.num_classes)
    value = {
        "format": schema.FORMAT,
        "version": schema.VERSION,
        "kind": kind,
        "codec": codec,
        "edges": list(EDGES),
        "classes": table.to_json(),
        "lineage": full_lineage(lineage),
        "policy": dict(policy) if policy else None,
        "images": sum(len(r["rows"]) for r in receipts),
        "shards": [_shard_entry(root, r) for r in receipts],
        "statistics": {name: record.to_json() for name, record in statistics.items()},
        "extras": [_extra_entry(root, file) for file in extras],
    }
    digest = sealed.write(root / schema.MANIFEST, value)
    _remove_old_statistics(root, {record.file for record in statistics.values()})
    return digest


def _shard_entry(root: Path, receipt: dict[str, Any]) -> dict[str, Any]:
    plan = ShardPlan.from_json(receipt["plan"])
    return {
        "index": plan.index,
        "key": plan.key,
        **receipt["shard"],
        "sidecar": receipt["sidecar"],
        "receipt": {"file": receipt_path(root, plan).relative_to(root).as_posix(), "digest": receipt["digest"]},
        "images": [[row["name"], row["image_sha256"]] for row in receipt["rows"]],
        "skipped": receipt["skipped"],
    }


def _extra_entry(root: Path, file: str) -> dict[str, Any]:
    path = root / file
    return {"file": file, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _remove_old_statistics(root: Path, current: set[str]) -> None:
    for name in schema.STATISTICS:
        for path in (root / schema.SIDECAR).glob(f"{name}-*.parquet"):
            if path.relative_to(root).as_posix() not in current:
                atomic.ops.unlink(path)


def read_manifest(store: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a store's manifest; anything wrong is a StoreError that names the file."""
    path = Path(store) / schema.MANIFEST
    if not path.is_file():
        raise StoreError(
            f"{store}: no label store here ({schema.MANIFEST} is missing)",
            hint="a store without a manifest was never finished: run the command that makes it again",
        )
    value = sealed.read(path)
    if value.get("format") != schema.FORMAT:
        raise StoreError(f"{path}: format is {value.get('format')!r}, expected {schema.FORMAT!r}")
    if value.get("version") != schema.VERSION:
        raise StoreError(
            f"{path}: version {value.get('version')} of the format, this program reads {schema.VERSION}",
            hint="use the release that wrote it, or make the store again",
        )
    return value


def listed_files(manifest: Mapping[str, Any]) -> list[str]:
    """All files of a store, the manifest last, relative to its folder."""
    files = []
    for shard in manifest["shards"]:
        files += [shard["file"], shard["sidecar"]["file"], shard["receipt"]["file"]]
    others = [*manifest["statistics"].values(), *manifest["extras"]]
    return [*files, *(r["file"] for r in others), schema.MANIFEST]


def publish_store(source: str | Path, target: str | Path) -> None:
    """Hard-link a finished store's files into another folder, in one step; other files there go."""
    source, target = Path(source), Path(target)
    publish_tree(source, target, last=(schema.MANIFEST,), only=listed_files(read_manifest(source)))


def refuse_in_store(out: Path) -> None:
    """Refuse a folder in (or at) a label store: a file that the manifest does not list would make the store damaged."""
    place = out.resolve()
    if any(_is_store(folder) for folder in (place, *place.parents)):
        raise ConfigError(
            f"{out}: lies in a label store, which holds nothing but its own files", hint="give a folder elsewhere"
        )


def _is_store(folder: Path) -> bool:
    try:
        return read_json(folder / schema.MANIFEST).get("format") == schema.FORMAT
    except (OSError, IntegrityError):  # there is no manifest, or it cannot be read
        return False
