"""The repository root is itself a workspace of profile demo: DVC has to understand it as it lies there."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
STAGES = [
    "prepare",
    "teacher-pretrain",
    "teacher-train",
    "calibrate",
    "auto-infer",
    "pseudo-label",
    "student-train",
    "evaluate",
    "report",
]


def test_dvc_finds_the_nine_stages_of_the_root_and_nothing_else() -> None:
    # --all reads every dvc.yaml below the root, as `dvc repro` does: a template among them would stop it.
    command = [sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == STAGES


def test_the_root_has_the_params_of_profile_demo() -> None:
    assert (REPO / "params.yaml").read_text() == (REPO / "pipeline/profiles/demo.yaml").read_text()
