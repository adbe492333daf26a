"""A workspace: a folder with params.yaml, dvc.yaml, models/current.json and all outputs of the stages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io.errors import ConfigError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.process import StopRequest
from hmsa_core.io.remote import is_url, local_path, local_tree

if TYPE_CHECKING:
    from hmsa_core.data.source import SourceSpec
    from pipeline.workspace.params import Params

_MARKS = ("params.yaml", "dvc.yaml")
JUDGED_CURVES = "curves-judged.json"  # next to curves.json where `calibrate.region` leaves pixels out
PARAMS_VARIABLE = "AUTOLABEL_PARAMS"  # variable with the path of the file that a night reads instead of params.yaml
SETTINGS = "settings.yaml"  # all settings in effect when the last stage started; DVC compares its values
PARAMS_OF_NIGHT = "work/nightly/params.yaml"  # the file that AUTOLABEL_PARAMS names


class Workspace:
    """Paths and parameters of one workspace.

    Parameters are read (and their packages imported) on first use, so that a stage can take its lock before
    slow imports.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).resolve()
        self.stop = StopRequest()  # `autolabel stage` installs it as the handler of SIGTERM and SIGINT
        self.job_running = False

    @contextmanager
    def job(self) -> Iterator[None]:
        """Leave stop requests to the job while it runs; a request that the job did not see ends this process after it.

        Raises:
            InterruptedRunError: a stop was requested, but the job ran to its end.
        """
        self.job_running = True
        try:
            yield
        finally:
            self.job_running = False
        self.stop.check()

    @classmethod
    def find(cls, start: str | os.PathLike[str] | None = None) -> Workspace:
        """The workspace at `start` (default: the current folder), or the one around it."""
        here = Path(start) if start is not None else Path.cwd()
        hint = "make one with `autolabel init DIR --profile tiny`"
        if not here.resolve().is_dir():  # a mistyped path: the user does not mean the workspace around it
            raise ConfigError(f"{here}: no such folder", hint=hint)
        for folder in (here.resolve(), *here.resolve().parents):
            if all((folder / mark).is_file() for mark in _MARKS):
                return cls(folder)
        raise ConfigError(f"{here}: not a workspace (no {' and '.join(_MARKS)} here or above)", hint=hint)

    def path(self, relative: str) -> Path:
        """Absolute path of something in the workspace."""
        return self.root / relative

    @cached_property
    def params(self) -> Params:
        """The checked params.yaml, or the settings that a night reads instead (`nightly.parameters`)."""
        from pipeline.workspace.params import Params

        of_night, named = self.path(PARAMS_OF_NIGHT), os.environ.get(PARAMS_VARIABLE)
        is_of_workspace = named is not None and Path(named).resolve() == of_night.resolve()
        return Params.load(of_night if is_of_workspace else self.path("params.yaml"))

    @property
    def roots(self) -> dict[str, Path]:
        """{name: folder} of the roots that image paths in indexes and stores are relative to."""
        data = self.params.data
        sources = {"target": data.target, "pretrain": data.pretrain}
        return {name: self.resolve(source.root) for name, source in sources.items() if source is not None}

    def source(self, name: str) -> SourceSpec:
        """Settings of the data set of a named root, with its paths on this machine."""
        return self.located(getattr(self.params.data, name))

    def located(self, source: SourceSpec, *, anew: bool = False) -> SourceSpec:
        """A data set's settings with its paths on this machine; `anew` as in `resolve`."""
        paths = {"root": str(self.resolve(source.root, anew=anew))}
        if source.kind == "plain":  # its class file and table are files of the workspace
            paths |= {key: str(self.root / path) for key in ("classes", "table") if (path := getattr(source, key))}
        return source.model_copy(update=paths)

    def resolve(self, path: str | os.PathLike[str], *, anew: bool = False) -> Path:
        """Resolve a path of params.yaml: absolute, or relative to the workspace; an address becomes a tree of links.

        Args:
            path: a path or an address.
            anew: list an address again; else the objects of the last listing are used.
        """
        if is_url(path):
            return local_tree(str(path), anew=anew)
        return (self.root / local_path(path).expanduser()).resolve()

    def work(self, stage: str) -> Path:
        """Folder of a stage's resumable progress (keys below it: `pipeline.workspace.keys.open_work`)."""
        return self.root / "work" / stage

    def lock(self, stage: str) -> FileLock:
        """The kernel lock that allows one run of a stage at a time in this workspace."""
        return FileLock(self.root / "work" / "locks" / f"{stage}.lock", what=f"stage {stage} of {self.root}")

    def teacher(self) -> Path:
        """Checkpoint folder of the teacher that models/current.json names."""
        from pipeline.workspace.registry import Registry

        return Registry(self.root).teacher()

    def incumbent(self) -> tuple[str, Path]:
        """Name in an evaluation and checkpoint folder of the model that a student must surpass.

        It is the promoted version, else this workspace's teacher, or the control where no teacher is trained.
        """
        if self.params.teacher_train.skip and not self.is_promoted():
            return "control", self.path("models/control")
        return "incumbent" if self.is_promoted() else "teacher", self.teacher()

    def is_promoted(self) -> bool:
        """Whether the teacher is a registered model and not the model of this workspace's teacher-train."""
        from pipeline.workspace.registry import TEACHER_STAGE, Registry

        return Registry(self.root).current() != TEACHER_STAGE
