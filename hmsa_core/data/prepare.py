"""From a folder of files to an index: scan, pair, check every file by content, assign roles, find duplicates.

One bad file is a quarantine row, and the run goes on. It stops when a whole folder is missing, or when a
larger share of images is bad than `max_bad` allows. The result does not depend on the number of workers,
on clocks or on the folder's place.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data import cityscapes, folder, vistas
from hmsa_core.data.index import KINDS, Index, Sample
from hmsa_core.data.layout import Refused, Scan, refuse_odd_names
from hmsa_core.data.phash import near_duplicates
from hmsa_core.data.roles import assign_blocks, assign_roles
from hmsa_core.data.sampling import Centroids
from hmsa_core.data.spec import RolesSpec, SourceSpec
from hmsa_core.data.summary import Summary, check_labels, check_share, check_train_ids, summarise, write_refused
from hmsa_core.data.verify import Checked, Task, Verifier
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import InputError, LayoutError
from hmsa_core.io.process import die_with_parent
from hmsa_core.taxonomy import ClassTable

__all__ = ["CHECKS", "Summary", "build", "scan", "write_empty"]

CHECKS = 3  # raise it when a check changes: then an earlier index is no proof any more
_MOST_PAIRS = 1_000_000
Progress = Callable[[int, int], None]

_SCANNERS = {
    "cityscapes": cityscapes.scan,
    "mapillary": vistas.scan,
    "camvid": folder.scan_camvid,
    "folder": folder.scan,
}


def scan(source: SourceSpec) -> Scan:
    """Read the layout of a data set and pair its files by name; nothing is opened."""
    root = Path(source.root)
    if not root.is_dir():
        raise LayoutError(f"{root}: data set folder not found", hint=f"set the path of root {source.name!r}")
    result = _SCANNERS[source.kind](root, source)
    refuse_odd_names(result)
    if not result.found:
        first = next(iter(result.refused), None)
        why = f"; {len(result.refused)} refused, the first: {first.path}: {first.detail}" if first else ""
        raise LayoutError(f"{root}: no usable image of kind {source.kind} found ({result.layout}){why}")
    return result


def build(
    source: SourceSpec,
    roles: RolesSpec,
    out: str | Path,
    *,
    workers: int = 1,
    tile: int = 1024,
    min_pixels: int = 0,
    previous: str | Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Index one data set into the folder `out`.

    Writes `<name>.parquet`, `centroids-<name>.parquet` (of `learn` images), and this root's part of
    `quarantine.parquet` and `summary.json`, other roots' parts are kept.

    Args:
        source: where and in which layout.
        roles: who may use what.
        out: folder of the results.
        workers: processes that check files; 1 = this one. More are fresh interpreters, so a script that asks for
            them needs the usual `if __name__ == "__main__":`.
        tile: side of the tiles for class centroids, in pixels.
        min_pixels: fewest pixels of a class in a tile.
        previous: an earlier `out` folder: files with the same digest are not decoded again.
        progress: called with (done, total).

    Raises:
        LayoutError: a whole folder is missing or holds nothing usable.
        InputError: more than `source.max_bad` of the images, and than `source.max_bad_images`, are refused; each of
            them is in the quarantine table. Or maps of trainIds lie where ids are read.
    """
    scanned = scan(source)
    found = list(_unique(scanned))  # first: roles and blocks go by name
    role_of = assign_roles(found, roles)
    block_of = assign_blocks(found, role_of, source)
    earlier = _Earlier.load(previous, source.name, scanned.classes, tile, min_pixels)
    tasks = [earlier.task(f, role_of[f.name], block_of[f.name]) for f in found]
    verifier = Verifier(Path(source.root), scanned.classes, source.max_pixels, tile, min_pixels)
    checked = list(_run(verifier, tasks, workers, progress))
    refused = scanned.refused + [r for c in checked for r in c.refused]
    samples, duplicates = _drop_duplicates([c.sample for c in checked if c.sample is not None])
    refused += duplicates
    summary = summarise(source, scanned, samples, refused)
    summary.reused = sum(c.reused for c in checked)
    check_share(source, scanned.classes, summary, refused, Path(out))
    check_labels(source, scanned.classes, {f.name for f in found if f.label}, samples, refused, Path(out))
    kept = {s.name for s in samples}
    centroids = Centroids.collect(
        (c.sample.name, c.centroids)
        for c in checked
        if c.sample is not None and c.centroids is not None and c.sample.name in kept
    )
    counts = centroids.counts(scanned.classes.num_classes)
    summary.centroids = {name: int(n) for name, n in zip(scanned.classes.classes, counts, strict=True)}
    check_train_ids(source, scanned.classes, summary, samples)
    _near(samples, source.near_duplicate_bits, summary)
    _write(Path(out), source, scanned.classes, samples, centroids, refused, summary, tile, min_pixels)
    return summary


def write_empty(out: str | Path, name: str, classes: ClassTable, note: str) -> Summary:
    """Write the index of a root that is not given (no pretraining set): no rows, and a note that says so."""
    summary = Summary(name, notes=[note])
    source = SourceSpec(kind="folder", name=name)
    _write(Path(out), source, classes, [], Centroids(), [], summary, 0, 0)
    return summary


def _unique(scanned: Scan) -> Iterator[Any]:
    """Found images by name; a second one of the same name is refused."""
    seen: dict[str, str] = {}
    for found in sorted(scanned.found, key=lambda f: (f.name, f.image)):
        if found.name in seen:
            detail = f"{seen[found.name]} has the same name"
            scanned.refused.append(Refused(found.name, found.image, "image", found.split, "duplicate-name", detail))
        else:
            seen[found.name] = found.image
            yield found


@dataclass
class _Earlier:
    """What an earlier index knows, if it was made with the same checks and settings."""

    samples: dict[str, Sample] = field(default_factory=dict)
    centroids: dict[str, NDArray[np.int32]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path | None, name: str, classes: ClassTable, tile: int, min_pixels: int) -> _Earlier:
        if folder is None or not (Path(folder) / f"{name}.parquet").is_file():
            return cls()
        index = Index.load(Path(folder) / f"{name}.parquet")
        if index.extra.get("checks") != CHECKS or index.classes != classes:
            return cls()
        earlier = cls({s.name: s for s in index.samples})
        path = Path(folder) / f"centroids-{name}.parquet"
        if path.is_file() and Centroids.settings(path) == {"tile": tile, "min_pixels": min_pixels}:
            none = np.zeros((0, 4), np.int32)
            earlier.centroids = {s.name: none for s in index.samples if s.role == "learn"}
            earlier.centroids |= Centroids.load(path).split()
        return earlier

    def task(self, found: Any, role: str, block: str) -> Task:
        return Task(found, role, block, self.samples.get(found.name), self.centroids.get(found.name))


def _run(verifier: Verifier, tasks: Sequence[Task], workers: int, progress: Progress | None) -> Iterator[Checked]:
    """Results in the order of the tasks, whatever the number of workers."""
    if workers <= 1:
        yield from _counted(map(verifier, tasks), len(tasks), progress)
        return
    # Not "fork": this process may hold threads (pyarrow, BLAS), which a fork leaves behind locked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Verifier.__module__])
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_init_worker)
    try:
        yield from _counted(_submit(pool, verifier, tasks), len(tasks), progress)
    except BrokenProcessPool as error:
        # The pool asks the others by SIGTERM, which they ignore, and they may wait for a lock that the dead one held.
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise InputError(
            "a process that checks images died (out of memory?)", hint="run again with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, verifier: Verifier, tasks: Sequence[Task]) -> Iterator[Checked]:
    """All tasks handed in; a worker that dies meanwhile may be met while the next one is being started."""
    try:
        return pool.map(verifier, tasks, chunksize=4)
    except OSError as error:  # of the pipes to the workers: no task has been run in this process
        raise BrokenProcessPool(f"a worker could not be started: {error}") from error


def _init_worker() -> None:
    """A signal for the whole group is the parent's to handle; its death ends the workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)


def _counted(results: Iterable[Checked], total: int, progress: Progress | None) -> Iterator[Checked]:
    for done, result in enumerate(results, 1):
        yield result
        if progress:
            progress(done, total)


def _drop_duplicates(samples: Sequence[Sample]) -> tuple[list[Sample], list[Refused]]:
    """Keep one image of each digest: the one that is judged, else the one with the best label, else the first."""
    roles = ("report", "calibrate", "learn", "unlabelled", "guard")
    kept: dict[str, Sample] = {}
    for s in sorted(samples, key=lambda s: (roles.index(s.role), KINDS.index(s.kind), s.name)):
        kept.setdefault(s.image_sha256, s)
    refused = [
        Refused(s.name, s.image, "image", s.split, "duplicate", f"duplicate of {kept[s.image_sha256].name}")
        for s in samples
        if kept[s.image_sha256] is not s
    ]
    return [s for s in samples if kept[s.image_sha256] is s], refused


def _near(samples: Sequence[Sample], bits: int, summary: Summary) -> None:
    found = near_duplicates([s.phash for s in samples], bits, limit=_MOST_PAIRS)
    if len(found) == _MOST_PAIRS:
        summary.notes.append(f"more than {_MOST_PAIRS} pairs of near duplicates; the rest is not counted")
    pairs = [(samples[i], samples[j], d) for i, j, d in found]
    counts = Counter("-".join(sorted((a.role, b.role))) for a, b, _ in pairs)
    summary.near_duplicates = dict(sorted(counts.items()))
    # Pairs across roles matter: one of them may be judged with a model that learned from the other.
    pairs.sort(key=lambda p: (p[0].role == p[1].role, p[2], p[0].name, p[1].name))
    summary.near_duplicate_examples = [[a.name, b.name] for a, b, _ in pairs[:20]]


def _write(
    out: Path,
    source: SourceSpec,
    classes: ClassTable,
    samples: Sequence[Sample],
    centroids: Centroids,
    refused: Sequence[Refused],
    summary: Summary,
    tile: int,
    min_pixels: int,
) -> None:
    figures = out / "summary.json"
    roots = dict(read_json(figures)) if figures.is_file() else {}
    centroids.write(out / f"centroids-{source.name}.parquet", tile=tile, min_pixels=min_pixels)
    write_refused(out, source.name, refused)
    write_json(figures, {**roots, source.name: summary.to_json()})
    # Last: who finds the index finds the rest.
    Index.write(out / f"{source.name}.parquet", samples, classes, source.name, checks=CHECKS)
