"""Labelling into an object store in processes that can be killed; all imports are done once, by the fork server."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import s3fs  # noqa: F401 - imported before the fork

from hmsa_core.inference import label
from hmsa_core.inference.folder import infer_job, label_folder  # noqa: F401
from tests.support.inference import CPU


def _write(model: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    setting = {"scales": (1.0,), "flip": False, "images_per_shard": 2, "runtime": CPU}
    label("s3://lab/images", model, "s3://lab/store", **setting)


def start(model: Path, cache: Path) -> BaseProcess:
    """A writer with a cache of its own: another machine."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    names = [name for name in os.environ if name.startswith("AWS_")]
    environment = {name: os.environ[name] for name in names} | {"AUTOLABEL_CACHE": str(cache)}
    process = context.Process(target=_write, args=(model, environment))
    process.start()
    return process
