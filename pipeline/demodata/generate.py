"""Write a whole demo data set: in processes, into a temporary folder, published by one rename, stamped last."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from hmsa_core import atomic
from hmsa_core.errors import ConfigError
from pipeline.demodata.cityscapes import CityJob, city_jobs, write_city_picture
from pipeline.demodata.defects import plant_defects
from pipeline.demodata.spec import DemoSpec
from pipeline.demodata.vistas import VistasJob, vistas_jobs, write_vistas_metadata, write_vistas_picture

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
    spec returns at once; a changed spec (or generator) replaces the folder, but only one that carries our stamp.

    Raises:
        ConfigError: `out` exists, is not empty and was not made by this function.
    """
    out = Path(out)
    wanted = {"spec": spec.to_json(), "generator": generator_digest()}
    key = atomic.digest(wanted)
    if out.exists() and any(out.iterdir()):
        stamp = out / STAMP
        if not stamp.is_file():
            raise ConfigError(f"demo data: {out} is not empty and was not made by demo-data; choose another folder or empty it")
        if atomic.read_json(stamp).get("key") == key:
            _LOG.info("demo data: %s is up to date", out)
            return
    build = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        planted = _build(spec, build, workers)
        atomic.write_json(build / STAMP, {"key": key, **wanted, "planted": planted})
        _publish(build, out)
    finally:
        if build.exists():
            shutil.rmtree(build)


def _publish(build: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    atomic.ops.rename(build, out)
    atomic.ops.fsync_dir(out.parent)
    if old.exists():
        shutil.rmtree(old)


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
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for _ in pool.map(work, jobs, chunksize=max(len(jobs) // (workers * 8), 1)):
                pass
    else:
        for job in jobs:
            work(job)
    write_vistas_metadata(spec, root / "mapillary")
    return plant_defects(spec, root / "cityscapes") if spec.defects else []
