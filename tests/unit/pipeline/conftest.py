"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.workspace import new_workspace
from tests.support.label_scenes import inspected

Said = Callable[..., "pytest.CaptureResult[str]"]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """`said(*arguments, status=0)` runs `autolabel`, checks its exit status, and returns what it wrote (.out, .err)."""

    def run(*arguments: object, status: int = 0) -> pytest.CaptureResult[str]:
        capsys.readouterr()
        found = main([str(argument) for argument in arguments])
        wrote = capsys.readouterr()
        assert found == status, wrote.err
        return wrote

    return run


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`autolabel inspect ... --json` as an object."""
    return partial(inspected, capsys)


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave git and DVC out of `init` where a test is about files: they take a second."""
    monkeypatch.setattr(new_workspace, "_set_up_version_control", lambda _folder: None)
