"""Commands of a workspace in forks of the test process: what takes each process seconds to import is imported once.

`init`, DVC, the stages and their jobs are the real programs with their arguments, environment and folder. Only
Python's start is left out.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from hmsa_core.io.process import group_lives
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


def autolabel(*arguments: str) -> int:
    """Exit status of `autolabel ARGUMENTS`."""
    return _run_group("pipeline.cli.main", arguments, environment(), REPO)


def repro(folder: Path) -> int:
    """Exit status of `dvc repro` in a workspace."""
    return _run_group(__name__, (), environment(), folder)


def main(_arguments: list[str]) -> int:
    """`dvc repro` in the current folder, with forks in place of the processes that DVC and the stages start."""
    from dvc import cli
    from dvc.stage import run

    from pipeline.jobs import launcher

    run._run = _run_stage
    launcher.run_child = _run_job
    return cli.main(["repro"])


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
    return os.waitstatus_to_exitcode(os.waitpid(_start(module, arguments, env, cwd), 0)[1])


def _run_group(module: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | str) -> int:
    """As `_run`, in a process group of its own, of which nothing is left afterwards, nor if the test is stopped."""
    pid = _start(module, arguments, env, cwd, is_leader=True)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until waitpid its number can name no other group
        wait_for(f"the end of all that {module} started", lambda: not group_lives(pid), 10.0)
    finally:
        os.killpg(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _start(
    module: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | str, *, is_leader: bool = False
) -> int:
    _import_all()
    main: Callable[[list[str]], int] = import_module(module).main

    def work() -> int:
        if is_leader:
            os.setpgid(0, 0)
        os.chdir(cwd)
        # Two cores, for a rank each: threads of OpenMP that the test process has would hang in a fork.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        os.environ.clear()
        os.environ.update(env)
        warnings.simplefilter("ignore")  # for pytest each one is an error
        return main(list(arguments))

    pid = forked(work)
    if is_leader:  # here, too: whoever comes first; the child may have ended
        with suppress(OSError):
            os.setpgid(pid, pid)
    return pid


def _import_all() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _MODULES:
            import_module(name)
        for stage in STAGES:
            module_of(stage)
