"""Commands of a workspace in forks of one process: what takes each process seconds to import is imported once.

`init`, DVC, the stages and their jobs are the real programs with their arguments, environment and folder. Only
Python's start is left out. The process that forks runs nothing else: a fork of the test process would inherit threads,
locks and signal handlers of the tests before.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from pipeline.stages import module_of
from pipeline.workspace.table import STAGES
from tests.support.chain import REPO, environment
from tests.support.faults import forked
from tests.support.waiting import wait_for

_MODULES = (
    *("dvc.cli.parser", "dvc.repo", "dvc.stage.run", "torch._dynamo", "pipeline.cli.main", "pipeline.stages.runner"),
    *("pipeline.plan.plan", "pipeline.plan.duration", "pipeline.jobs.launcher", "hmsa_core.job"),
    *("hmsa_core.training.run", "hmsa_core.inference.folder.infer_job", "hmsa_core.inference.evaluation.evaluate_job"),
)


class Forks:
    """The process that forks, in one process group with all that it starts: a line for a command, a line for its status."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def autolabel(self, *arguments: str) -> int:
        """Exit status of `autolabel ARGUMENTS`."""
        return self._run("pipeline.cli.main", arguments, REPO)

    def repro(self, folder: Path) -> int:
        """Exit status of `dvc repro` in a workspace."""
        return self._run("tests.support.forks", ("repro",), folder)

    def end(self) -> None:
        """End it and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _run(self, module: str, arguments: Sequence[str], folder: Path) -> int:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps([module, arguments, str(folder)]) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except BaseException:  # its answer would be taken for that of the next command
            self.end()
            raise


@contextmanager
def forks() -> Iterator[Forks]:
    """Start the process that forks; nothing of it is left afterwards, nor if a test is stopped."""
    command = (sys.executable, "-m", "tests.support.forks", "serve")
    pipe: Any = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, cwd=REPO, env=environment(), text=True, process_group=0
    )
    running = Forks(process)
    try:
        yield running
    finally:
        running.end()


def main(arguments: list[str]) -> int:
    """Serve requests; or `dvc repro` in the current folder, with forks in place of what DVC and the stages start."""
    if arguments == ["serve"]:
        _serve()
        return 0
    from dvc import cli
    from dvc.stage import run

    from pipeline.jobs import launcher

    run._run = _run_stage
    launcher.run_child = _run_job
    return cli.main(arguments)


def _serve() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the commands print is no answer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in _MODULES:
                import_module(name)
            for stage in STAGES:
                module_of(stage)
        for line in sys.stdin:
            module, words, folder = json.loads(line)
            status = _run(module, words, dict(os.environ), folder)
            wait_for(f"the end of all that {module} started", _is_alone, 10.0)
            answers.write(f"{status}\n")
            answers.flush()


def _is_alone() -> bool:
    """Whether nothing else lives in the process group."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):  # one that ends meanwhile: look again
        alive = (p.pid for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE)
        return [pid for pid in alive if os.getpgid(pid) == os.getpgid(0)] == [os.getpid()]
    return False


def _run_stage(_shell: str, command: str, *, env: Mapping[str, str], cwd: str, **_: object) -> None:
    """As DVC runs `exec autolabel ARGUMENTS` of a stage."""
    from dvc.stage.exceptions import StageCmdFailedError

    words = shlex.split(command)
    assert words[:2] == ["exec", "autolabel"], command
    if status := _run("pipeline.cli.main", words[2:], env, cwd):
        raise StageCmdFailedError(command, status)


def _run_job(command: Sequence[str], *, env: Mapping[str, str], **_: object) -> int:
    """As a stage runs `python -m MODULE ARGUMENTS`."""
    assert list(command[:2]) == [sys.executable, "-m"], command
    return _run(command[2], command[3:], env, Path.cwd())


def _run(module: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | str) -> int:
    """Exit status of a module's `main(arguments)` in a fork."""
    main: Callable[[list[str]], int] = import_module(module).main

    def work() -> int:
        os.chdir(cwd)
        # Two cores, for a rank each: threads of OpenMP that a stage has would hang in the fork that is its job.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        os.environ.clear()
        os.environ.update(env)
        warnings.simplefilter("ignore")  # libraries warn of forks
        return main(list(arguments))

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
