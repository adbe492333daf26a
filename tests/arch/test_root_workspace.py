"""The repository root is itself a workspace of profile demo: DVC has to understand it as it lies there."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.workspace.table import STAGES
from tools.render import rendered

REPO = Path(__file__).resolve().parents[2]


def test_dvc_finds_the_stages_of_the_table_in_the_root_and_nothing_else() -> None:
    # --all reads every dvc.yaml below the root, as `dvc repro` does: a template among them would stop it.
    command = [sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == ("settings", *STAGES)


@pytest.mark.parametrize("path", rendered(), ids=lambda path: path.name)
def test_what_follows_from_the_table_of_stages_and_the_settings_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == rendered()[path], "run `python -m tools.render`"
