"""Write a whole demo data set: in processes, into a temporary folder, published by one rename, stamped last."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from examples.streets.cityscapes import CityJob, city_jobs, write_city_picture
from examples.streets.defects import plant_defects
from examples.streets.spec import DemoSpec
from examples.streets.vistas import VistasJob, vistas_jobs, write_vistas_metadata, write_vistas_picture
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, translate_os_error
from hmsa_core.io.locks import FileLock
from hmsa_core.io.process import die_with_parent

__all__ = ["STAMP", "generate", "generator_digest"]

STAMP = "demo-data.json"
_LOG = logging.getLogger(__name__)


def generator_digest() -> str:
    """SHA-256 over the generator's own source files: the version of the pictures it makes."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def generate(spec: DemoSpec, out: Path, workers: int = 1) -> None:
    """Write `out`/cityscapes and `out`/mapillary in the exact layouts of the data sets.

    The same spec gives the same pixels on any machine and with any number of workers. A second call with the same
    spec returns at once if no file is missing; a changed spec (or generator) replaces the folder, but only one that
    carries our stamp.

    Raises:
        ConfigError: `out` exists, is not empty and was not made by this function.
        LockedError: another process is generating the same folder.
    """
    out = Path(out).absolute()
    wanted = {"spec": spec.to_json(), "generator": generator_digest()}
    key = atomic.digest(wanted)
    if _is_current(out, key):
        _LOG.info("demo data: %s is up to date", out)
        return
    build, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    with FileLock(out.with_name(f".{out.name}.lock"), what=f"demo data folder {out}"):
        _tidy(out, build, old)
        try:
            planted = _build(spec, build, workers)
            atomic.write_json(build / STAMP, {"key": key, **wanted, "planted": planted, "files": _count_files(build)})
            if out.exists():
                atomic.ops.rename(out, old)
            atomic.ops.rename(build, out)
            atomic.ops.fsync_dir(out.parent)
        except OSError as error:
            raise translate_os_error(error, "writing demo data") from error
        finally:
            _tidy(out, build, old)


def _tidy(out: Path, build: Path, old: Path) -> None:
    """Remove what a killed run left; a set that was moved aside but not yet replaced goes back to its place."""
    atomic.remove_tree(build)
    if old.exists() and not out.exists():
        atomic.ops.rename(old, out)
    atomic.remove_tree(old)


def _is_current(out: Path, key: str) -> bool:
    """Whether `out` holds what is wanted; refuses a folder that somebody else filled."""
    if not out.exists():
        return False
    stamp = out / STAMP
    if stamp.is_file():
        made = atomic.read_json(stamp)
        # The stamp outlives a folder or picture that somebody removed: then the set is made again.
        return made.get("key") == key and made.get("files") == _count_files(out)
    if not out.is_dir() or any(out.iterdir()):
        raise ConfigError(f"demo data: {out} was not made by demo-data; choose another folder, or empty it")
    return False


def _count_files(root: Path) -> int:
    return sum(len(names) - (STAMP in names) for _, _, names in os.walk(root))


def _write(spec: DemoSpec, root: Path, job: CityJob | VistasJob) -> None:
    if isinstance(job, CityJob):
        write_city_picture(spec, root / "cityscapes", job)
    else:
        write_vistas_picture(spec, root / "mapillary", job)


def _build(spec: DemoSpec, root: Path, workers: int) -> list[str]:
    jobs: list[CityJob | VistasJob] = [*city_jobs(spec), *vistas_jobs(spec)]
    root.mkdir(parents=True)
    work = partial(_write, spec, root)
    if workers > 1 and len(jobs) > 8:
        context = multiprocessing.get_context("spawn")
        # A killed parent must leave nobody behind.
        start = partial(die_with_parent, signal.SIGKILL, parent=os.getpid())
        with ProcessPoolExecutor(workers, mp_context=context, initializer=start) as pool:
            for _ in pool.map(work, jobs, chunksize=max(len(jobs) // (workers * 8), 1)):
                pass
    else:
        for job in jobs:
            work(job)
    write_vistas_metadata(spec, root / "mapillary")
    return plant_defects(spec, root / "cityscapes") if spec.defects else []
