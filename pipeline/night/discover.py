"""Find the images that arrived since the last index: new images, copies and near-copies of known images.

The morning page shows these images as "arrived". Only `prepare` indexes and quarantines images.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hmsa_core.data.checks import perceptual_hash
from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.data.layouts import scan
from hmsa_core.data.near import hash_values, nearest
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import DecodeError, IntegrityError
from hmsa_core.io.remote import fetched
from pipeline.workspace.workspace import Workspace

_NAMED = 20  # examples kept of each kind
_KINDS = ("arrived", "copies", "near", "gone")


def discover(ws: Workspace) -> dict[str, Any]:
    """Compare the target data set's folder with the index of the last run.

    Returns:
        {"arrived", "copies", "near", "gone": counts; "first": bool; "sentence": str; "examples": {"arrived":
        [[name, path]], "copies" and "near": [[name, known name, path]], "gone": [name]}}; paths as in the index.
    """
    source = ws.source("target")
    found = {f.name: f.image for f in scan(source).found}
    index, quarantine = ws.path("data/index/target.parquet"), ws.path("data/index/quarantine.parquet")
    known = Index.load(index).samples if index.exists() else ()
    names, by_content = {s.name for s in known}, {s.image_sha256: s.name for s in known}
    refused = {row.name for row in read_quarantine(quarantine)} if quarantine.exists() else set()
    new = sorted(set(found) - names - refused)
    copies, hashes = [], {}
    for name in new if known else ():  # on the first night all images are new, and `prepare` hashes them anyway
        with suppress(DecodeError, IntegrityError, OSError):  # `prepare` will report the reason
            file = fetched(Path(source.root) / found[name])
            if twin := by_content.get(sha256_file(file)):
                copies.append([name, twin, found[name]])
            else:
                hashes[name] = perceptual_hash(read_image(file))
    matches = nearest(
        hash_values(hashes.values()), hash_values(s.phash for s in known), ws.params.data.target.near_duplicate_bits
    )
    near = [[name, known[i].name, found[name]] for name, (i, _) in zip(hashes, matches, strict=True) if i >= 0]
    arrived, gone = [[name, found[name]] for name in new], sorted(names - set(found))
    lists: dict[str, list[Any]] = dict(zip(_KINDS, (arrived, copies, near, gone), strict=True))
    if known:
        sentence = f"{len(new)} new images ({len(copies)} copies, {len(near)} near-copies of known ones)"
        sentence += f", {len(gone)} gone" if gone else ""
    else:
        sentence = f"first run: {len(new)} images in the target folder"
    examples = {key: rows[:_NAMED] for key, rows in lists.items()}
    counts = {key: len(rows) for key, rows in lists.items()}
    return {**counts, "first": not known, "examples": examples, "sentence": sentence}


def joined(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What two nights found, of which the first one ended without a page; both found what no `prepare` indexed."""
    if not before:
        return now
    old, new = before["examples"], now["examples"]
    examples = {key: [*new[key], *(row for row in old[key] if row not in new[key])][:_NAMED] for key in _KINDS}
    return now | {key: max(now[key], len(examples[key])) for key in _KINDS} | {"examples": examples}
