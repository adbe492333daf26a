"""A workspace that a doctor looks at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.io import atomic
from pipeline.doctor import checks as doctor
from pipeline.workspace.workspace import Workspace
from research.tests.ablations import bare_workspace
from tests.conftest import REPO


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = bare_workspace(tmp_path)
    target, pretrain = tmp_path / "data/demo/cityscapes", tmp_path / "data/demo/mapillary"
    for file in (
        target / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        target / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png",
        pretrain / "training/images/a.png",
        pretrain / "training/labels/a.png",
    ):
        file.parent.mkdir(parents=True)
        Image.new("L", (48, 32)).save(file)
    shutil.copy(REPO / "hmsa_core/taxonomy/mapillary_v1.2.json", pretrain / "config.json")
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = True\n")
    (tmp_path / "policies").mkdir()
    atomic.write_text(tmp_path / "labels/raw.review.jsonl", '{"id": "0", "name": "", "withdraws": ""}\n')
    atomic.write_json(tmp_path / "models/current.json", {"teacher": "stage:teacher-train"})
    return made


@pytest.fixture(autouse=True)
def _no_torch_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torch_works", lambda: None)  # seconds each time; tested once in test_doctor.py
