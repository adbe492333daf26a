"""What arrived since the last index: new images by content, copies of known ones, near-copies named.

Nothing is decided here: `prepare` indexes and quarantines. This is what the morning page calls "arrived".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.checks import perceptual_hash
from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Index
from hmsa_core.data.layouts import scan
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import DecodeError
from pipeline.workspace import Workspace

_NAMED = 20  # examples kept of each kind


def discover(ws: Workspace) -> dict[str, Any]:
    """Compare the target data set's folder with the index of the last run.

    Returns:
        {"arrived", "copies", "near", "gone": counts; "first": bool; "sentence": str; "examples": {"arrived":
        [[name, path]], "copies" and "near": [[name, known name, path]], "gone": [name]}}; paths as in the index.
    """
    source = ws.source("target")
    found = {f.name: f.image for f in scan(source).found}
    path = ws.path("data/index/target.parquet")
    known = Index.load(path).samples if path.exists() else ()
    by_content = {s.image_sha256: s.name for s in known}
    names = {s.name for s in known} | _refused_names(ws)
    new = sorted(set(found) - names)
    copies, near = [], []
    if known:  # on the first night everything is new; hashing it all here would be work done twice
        hashes = np.array([int(s.phash, 16) for s in known], np.uint64)
        for name in new:
            file = Path(source.root) / found[name]
            twin = by_content.get(sha256_file(file))
            if twin is not None:
                copies.append([name, twin, found[name]])
                continue
            like = _near(file, hashes, ws.params.data.target.near_duplicate_bits)
            if like is not None:
                near.append([name, known[like].name, found[name]])
    gone = sorted({s.name for s in known} - set(found))
    arrived = [[name, found[name]] for name in new]
    lists: dict[str, list[Any]] = {"arrived": arrived, "copies": copies, "near": near, "gone": gone}
    result: dict[str, Any] = {key: len(rows) for key, rows in lists.items()}
    result |= {"first": not known, "examples": {key: rows[:_NAMED] for key, rows in lists.items()}}
    result["sentence"] = _sentence(result)
    return result


def _near(file: Path, hashes: NDArray[np.uint64], bits: int) -> int | None:
    """Position of the first known image whose perceptual hash is at most `bits` away."""
    try:
        own = perceptual_hash(read_image(file))
    except DecodeError:
        return None  # `prepare` will quarantine it with the reason
    distances = np.bitwise_count(hashes ^ np.uint64(int(own, 16)))
    close = np.flatnonzero(distances <= bits)
    return int(close[0]) if len(close) else None


def _refused_names(ws: Workspace) -> set[str]:
    from hmsa_core.data.index import read_quarantine

    path = ws.path("data/index/quarantine.parquet")
    return {row.name for row in read_quarantine(path)} if path.exists() else set()


def _sentence(result: dict[str, Any]) -> str:
    if result["first"]:
        return f"first run: {result['arrived']} images in the target folder"
    text = f"{result['arrived']} new images ({result['copies']} copies, {result['near']} near-copies of known ones)"
    return text + (f", {result['gone']} gone" if result["gone"] else "")
