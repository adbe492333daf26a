"""Shared fixtures: one thread per test process, seeds, no stray environment."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import afterwards, s3

# A busy machine is no failure: nothing here tests time. The same examples at every run, so that a red run is
# the change's doing.
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault(afterwards.MARK, uuid.uuid4().hex)  # before xdist starts its workers
afterwards.keep_out_of_home()

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Commands that run in the test process install handlers for theirs: the next test, and a fork of it, has none."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _ranks_can_be_forked() -> None:
    """The first backward pass of a process starts threads for each kind of device that torch knows then.

    An export makes CUDA known to torch where there is none. After such threads a fork cannot compute gradients.
    """
    import torch  # seconds, which the parent of the test processes is spared

    torch.ones((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[s3.Server]:
    with s3.running() as server:
        yield server


@pytest.fixture
def bucket(_s3_server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s3.Server:
    """An S3 server with the empty bucket `lab`; a cache of the test's own."""
    for name, value in {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": _s3_server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AUTOLABEL_CACHE", str(tmp_path / "cache"))
    _s3_server.begin("lab")
    return _s3_server


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that short ones fill the processes to the end of a run.

    The first of them makes the workspace of the chain; meanwhile the other processes have tests of models.
    """

    def place(item: pytest.Item) -> int:
        if item.path.name == "test_nightly.py":
            return 0
        if item.path.parent.name == "models":
            return 1
        return 2 if item.get_closest_marker("chain") or item.get_closest_marker("fault") else 3

    items.sort(key=place)


_BEFORE = pytest.StashKey[afterwards.Seen]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what must be the same afterwards (not in xdist's workers)."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[_BEFORE] = afterwards.look()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run when a test left something behind."""
    if _BEFORE not in session.config.stash or session.config.option.collectonly:
        return
    wrong = afterwards.check(session.config.stash[_BEFORE])
    if wrong:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("")
            for line in wrong:
                reporter.write_line(f"ERROR {line}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
