"""The code of docs/api.md and of the README runs; docs/api.md shows every public name of the library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hmsa_core

REPO = Path(__file__).resolve().parents[2]


def _code(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (REPO / page).read_text("utf-8"), re.MULTILINE | re.DOTALL))


CODE = _code("docs/api.md")


@pytest.mark.long
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning:hmsa_core", "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_code_of_the_readme_gives_shares_of_classes_and_scales_at_each_pixel() -> None:
    names: dict[str, Any] = {"images": torch.randn(1, 3, 64, 96)}
    exec(_code("README.md"), names)
    prediction = names["prediction"]
    assert prediction.probabilities.shape == (1, 19, 64, 96)
    assert prediction.weights.keys() == {0.5, 1.0, 2.0}
    for shares in (prediction.probabilities.sum(1), sum(prediction.weights.values())):
        assert torch.allclose(shares, torch.ones(()), atol=1e-5)
    assert prediction.probabilities.std((2, 3)).min() > 0, "the same at each pixel: the images do not count"


def test_every_public_name_has_an_example_and_a_docstring() -> None:
    assert len(hmsa_core.__all__) == 10
    for name in hmsa_core.__all__:
        assert f"hmsa_core.{name}" in CODE
        assert getattr(hmsa_core, name).__doc__


def test_importing_the_library_loads_nothing_heavy() -> None:
    code = "import sys, hmsa_core; print(sorted({'torch', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
