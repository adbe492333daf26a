"""What the doctor looks at in files that no stage makes again: histories, reviews, and what people put beside them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from hmsa_core.io.errors import HmsaError
from pipeline.doctor import dvc as doctor_dvc
from pipeline.doctor.finding import Finding
from pipeline.workspace import Workspace

__all__ = ["examine"]

# What `autolabel init` made and DVC asks for; the command that makes it anew.
_ASKED_FOR = {
    "policies": "mkdir -p policies",
    "labels/raw.review.jsonl": (
        """mkdir -p labels && echo '{"id": "0", "name": "", "withdraws": ""}' > labels/raw.review.jsonl"""
        "  # or take it from your backup: it holds what people reviewed"
    ),
}


def examine(ws: Workspace) -> Iterator[Finding]:
    """All of it."""
    yield from _missing(ws)
    yield from _lines(ws)
    yield from _unread(ws)


def _unread(ws: Workspace) -> Iterator[Finding]:
    """Marks beside the final store, where an earlier version put them: no stage reads those."""
    from hmsa_core.labels.review import ReviewFile, review_path

    name, raw = "labels/final.review.jsonl", "labels/raw.review.jsonl"
    with suppress(HmsaError):  # a damaged line is a finding of its own
        if marks := ReviewFile(ws.path("labels/final")).marks():
            text = f"{review_path(ws.path('labels/final'))}: {len(marks)} marks that no stage reads"
            yield Finding(name, "warning", text, f"cat {name} >> {raw} && rm {name}")


def _missing(ws: Workspace) -> Iterator[Finding]:
    with suppress(HmsaError):  # a dvc.yaml that cannot be read is a finding of its own
        for name in sorted(doctor_dvc.inputs(ws) & _ASKED_FOR.keys()):
            if not ws.path(name).exists():
                yield Finding(name, "broken", f"{ws.path(name)}: missing: dvc repro stops at it", _ASKED_FOR[name])


def _lines(ws: Workspace) -> Iterator[Finding]:
    """Files of one line an entry, of which a damaged one stops every reader."""
    from hmsa_core.labels.review import ReviewFile
    from pipeline.nightly import history
    from pipeline.nightly.gatekeeper import looks, measured_aa
    from pipeline.nightly.registry import Registry

    readers: dict[str, Callable[[], object]] = {
        history.HISTORY: partial(history.nights, ws),
        "models/registry/history.jsonl": Registry(ws.root).history,
        "models/registry/looks.jsonl": partial(looks, ws),
        "models/registry/aa.json": partial(measured_aa, ws),
    }
    for path in sorted(ws.path("labels").glob("*.review.jsonl")):
        name = path.relative_to(ws.root).as_posix()
        readers[name] = ReviewFile(path.with_name(path.name.removesuffix(".review.jsonl"))).marks
    for name, read in readers.items():
        try:
            read()
        except HmsaError as error:
            yield Finding(name, "broken", error.message, _mend(ws.path(name), name, error))


def _mend(path: Path, name: str, error: HmsaError) -> str:
    if path.suffix == ".json":
        return f"rm {shlex.quote(name)} && autolabel models aa"
    at = re.match(r": line (\d+) ", error.message.removeprefix(str(path)))
    return f"sed -i {at[1]}d {shlex.quote(name)}  # or mend that line" if at else error.hint
