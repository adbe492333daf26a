"""The repository root is itself a workspace of profile demo: DVC has to understand it as it lies there."""

import subprocess
import sys
from pathlib import Path

from pipeline.init import render_dvc_yaml
from pipeline.stages import STAGES

REPO = Path(__file__).resolve().parents[2]


def test_dvc_finds_the_stages_of_the_table_in_the_root_and_nothing_else() -> None:
    # --all reads every dvc.yaml below the root, as `dvc repro` does: a template among them would stop it.
    command = [sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == STAGES


def test_the_roots_dvc_yaml_is_the_one_that_follows_from_the_table() -> None:
    assert (REPO / "dvc.yaml").read_text() == render_dvc_yaml(has_pretrain=True)
