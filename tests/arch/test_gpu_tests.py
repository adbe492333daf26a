"""Tests that need a GPU can be collected on every machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import REPO
from tests.support import afterwards

pytestmark = pytest.mark.long

COLLECT = "import sys, pytest, torch; torch.cuda.is_available = lambda: True; sys.exit(pytest.main(sys.argv[1:]))"
OPTIONS = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]


def reported(*command: str) -> str:
    # A suite of its own: processes and files of the one around it are not its business.
    env = {name: value for name, value in os.environ.items() if name not in (afterwards.MARK, afterwards.STRICT)}
    done = subprocess.run([sys.executable, *command], cwd=REPO, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_none_of_them_fails_at_import_or_collection_where_a_gpu_is_said_to_be() -> None:
    found = re.search(r"(\d+) tests collected", reported("-c", COLLECT, "--collect-only", *OPTIONS))
    assert found is not None
    assert int(found[1]) >= 40
