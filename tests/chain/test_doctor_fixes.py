"""The doctor's word is tried: what it names as broken is fixed by exactly the command that it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.chain import dvc, lock_file, run
from tests.support.damage import flip

pytestmark = [pytest.mark.chain, pytest.mark.fault]


def _findings(workspace: Path, status: int) -> dict[str, dict[str, str]]:
    said = run(workspace, "autolabel", "doctor", "--json", status=status).text
    return {finding["name"]: finding for finding in json.loads(said) if finding["state"] == "broken"}


def test_each_fault_is_fixed_by_the_command_that_the_doctor_gives(workspace: Path) -> None:
    assert _findings(workspace, 0) == {}
    lock = lock_file(workspace)
    flip(sorted((workspace / "labels/raw").glob("shard-*.parquet"))[0])
    (workspace / "labels/final/manifest.json").write_text('{"digest"')
    flip(workspace / "models/teacher/model.safetensors")
    (workspace / "models/student/model.json").unlink()
    shutil.rmtree(workspace / "data/demo/mapillary")
    (workspace / ".dvc/tmp/rwlock").write_bytes(b"")

    broken = _findings(workspace, 1)
    expected = {"labels/raw", "labels/final", "models/teacher", "models/student", "data pretrain", "dvc lock"}
    assert set(broken) == expected
    # DVC's own lock first: without it no other command of DVC works.
    for finding in sorted(broken.values(), key=lambda f: f["name"] != "dvc lock"):
        done = run(workspace, "sh", "-c", finding["fix"], status=None)
        # --fix tells the findings that are still there by its status
        assert done.status == 0 or "--fix" in finding["fix"], (finding, done.text)
    assert _findings(workspace, 0) == {}
    assert dvc(workspace, "status").text.strip().endswith("up to date.")
    assert lock_file(workspace) == lock


def test_a_lock_file_with_the_conflict_of_a_merge_is_made_again_and_nothing_runs_twice(workspace: Path) -> None:
    lock = lock_file(workspace)
    ours, theirs = lock, lock.replace("md5: ", "md5: 0", 1)
    (workspace / "dvc.lock").write_text(f"<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> theirs\n")
    assert dvc(workspace, "repro", status=None).status != 0, "DVC cannot read it"
    broken = _findings(workspace, 1)
    assert set(broken) == {"dvc.lock"}
    assert "Running stage" not in run(workspace, "sh", "-c", broken["dvc.lock"]["fix"]).text
    assert lock_file(workspace) == lock
