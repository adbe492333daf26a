"""What tests of the command line and of label stores share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.workspace import new_workspace
from tests.support.label_scenes import Scenes, inspected, make_scenes

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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Six scenes of two cities; read only."""
    return make_scenes(tmp_path_factory.mktemp("made"))


@pytest.fixture
def copied(made: Scenes, tmp_path: Path) -> Scenes:
    """The same with a store that the test may change."""
    return made.copied_to(tmp_path)


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave git and DVC out of `init` where a test is about files: they take a second."""
    monkeypatch.setattr(new_workspace, "_set_up_version_control", lambda _folder: None)
