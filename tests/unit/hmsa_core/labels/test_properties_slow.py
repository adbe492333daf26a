"""The property tests of labels at their big count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import afterwards
from tests.support.cases import VARIABLE

HERE = Path(__file__).parent
MANY = 20_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["codec", "codes", "merge", "policy"])
def test_twenty_thousand_cases(name: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != afterwards.MARK} | {VARIABLE: str(MANY)}
    chosen = [sys.executable, "-m", "pytest", "-q", "-k", "any_map or keeps or pixel or 255 or pair or cut_of"]
    done = subprocess.run(
        [*chosen, str(HERE / f"test_{name}.py")],
        cwd=HERE.parents[3],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
