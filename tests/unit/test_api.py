"""docs/api.md runs from top to bottom, and shows every public name of the library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hmsa_core

REPO = Path(__file__).resolve().parents[2]
CODE = "\n".join(
    re.findall(r"^```python\n(.*?)^```", (REPO / "docs/api.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
)


@pytest.mark.long
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning:hmsa_core", "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_has_an_example_and_a_docstring() -> None:
    assert len(hmsa_core.__all__) == 10
    for name in hmsa_core.__all__:
        assert f"hmsa_core.{name}" in CODE
        assert getattr(hmsa_core, name).__doc__


def test_importing_the_library_loads_nothing_heavy() -> None:
    code = "import sys, hmsa_core; print(sorted({'torch', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
