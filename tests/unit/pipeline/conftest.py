"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.cli.main import main

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
