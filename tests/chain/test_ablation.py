"""A table of two rows on a finished workspace of profile `tiny`: real trainings, once; a clone has nothing left to do."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.labels import LabelStore
from pipeline.workspace.workspace import Workspace
from research.ablation.labels import make_labels
from research.ablation.plan import Labels
from research.figures import figures
from tests.support.chain import REPO, Whole, run

pytestmark = pytest.mark.chain
ABLATE = (sys.executable, "-m", "research.ablate")


@pytest.mark.slow
def test_two_rows_are_trained_once_recorded_and_found_by_a_clone(workspace: Path, whole: Whole, tmp_path: Path) -> None:
    options = ["--rows", "control,t0.5", "--seeds", "1", "--tables", str(tmp_path)]
    command = [*ABLATE, "threshold", *options]
    done = run(REPO, *command, "--workspace", str(workspace))
    assert "2 rows and seeds written" in done.text
    table = tmp_path / "threshold-tiny.parquet"
    found = {(x.row, x.seed, x.name, x.metric): x.value for x in figures(table)}
    control, mixed = (
        {m: v for (r, s, n, m), v in found.items() if (r, s, n) == (row, 1, "")} for row in ("control", "t0.5")
    )
    assert control["images_seen"] == mixed["images_seen"] > 0
    assert control["gmac_training"] == mixed["gmac_training"] > 0
    assert 0 < mixed["labelled_share"] < 1
    assert "labelled_share" not in control
    assert found["control", None, "", "mean_iou_low"] <= found["control", None, "", "mean_iou"]
    assert not list(workspace.glob("work/*/*/state/ablation*")), "states of finished trainings only take up the disk"

    before = table.read_bytes()
    assert "0 rows and seeds written" in run(REPO, *command, "--workspace", str(whole.root)).text, "another copy"
    assert table.read_bytes() == before
    listed = run(REPO, *command, "--list", "--workspace", str(whole.root)).text
    assert "missing" not in listed
    assert listed.count("mIoU") == 2


def _assert_equal_outside_the_camera_mask(found: np.ndarray, wanted: np.ndarray) -> None:
    masked = (found == 255) & (wanted != 255)
    assert np.array_equal(found[~masked], wanted[~masked])
    assert masked.mean() < 0.3


def test_ceiling_and_policies_are_learned_from_the_same_images(workspace: Path) -> None:
    ws = Workspace(workspace)
    raw = LabelStore.open(ws.path("labels/raw"))
    true, root = {}, ws.roots["target"] / "ceiling"
    shutil.rmtree(root)  # the true ones of the generator
    root.mkdir()
    for name in raw.names()[::2]:
        void = np.indices(raw.read_label(name).shape)[1] % 5 == 0
        Image.fromarray(np.where(void, 0, 7).astype(np.uint8)).save(root / f"{name}.png")  # ids: unlabelled, road
        true[name] = np.where(void, 255, 0).astype(np.uint8)  # trainIds
    ceiling = LabelStore.open(make_labels(ws, Labels("truth", only="ceiling")).data.store)
    assert set(ceiling.names()) == set(true)
    for name, label in true.items():
        _assert_equal_outside_the_camera_mask(ceiling.read_label(name), label)
    everything = LabelStore.open(make_labels(ws, Labels(0.0, only="ceiling")).data.store)
    assert set(everything.names()) == set(true)
    for name in true:
        _assert_equal_outside_the_camera_mask(everything.read_label(name), raw.read_label(name))
    taught = LabelStore.open(make_labels(ws, Labels("teach", only="ceiling")).data.store)
    assert taught.manifest["policy"] != everything.manifest["policy"]
