"""From the slider to the training labels: a policy saved on the page, read by the real `pseudo-label` stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmsa_core.data.index import Index
from hmsa_core.labels import LabelStore, LabelStoreWriter
from tests.support.browser_page import page_of
from tests.support.chain import REPO, run, set_params
from tests.support.label_scenes import LINEAGE, imitate_teacher

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny workspace after `prepare`, with raw labels of a simulated teacher."""
    folder = tmp_path_factory.mktemp("chain") / "tiny"
    run(REPO, "autolabel", "init", str(folder), "--profile", "tiny")
    run(REPO, "autolabel", "stage", "prepare", "--workspace", str(folder))
    set_params(folder, {"pseudo_label.merge.use_coarse": False, "pseudo_label.merge.mask_void_share": None})
    index = Index.load(folder / "data" / "index" / "unlabelled.parquet")
    with LabelStoreWriter(folder / "labels" / "raw", LINEAGE, 4, classes=index.classes) as writer:
        for number, sample in enumerate(index.samples):
            truth = np.zeros((sample.height, sample.width), np.uint8)
            truth[sample.height // 2 :] = 13
            label, confidence = imitate_teacher(truth, number)
            writer.add(
                sample.name,
                label,
                confidence,
                city=sample.city,
                image_path=sample.image,
                coarse_path=sample.coarse,
                image_sha256=sample.image_sha256,
            )
    return folder


def test_pseudo_label_keeps_exactly_what_the_page_showed(browser: Any, workspace: Path) -> None:
    raw = workspace / "labels" / "raw"
    with page_of(browser, raw, threshold="0.95", cut="car:0.8") as page:
        assert not page.find("#no-picture").is_displayed()  # the workspace knows where its pictures are
        page.find("#save-policy").click()
        page.until(lambda: page.text("#save-label") == "Policy saved")
        kept, said = page.kept(), page.text("#toasts")
        assert page.console() == []
    assert "pseudo_label.threshold: policies/raw.json" in said
    set_params(workspace, {"pseudo_label.threshold": "policies/raw.json"})
    run(REPO, "autolabel", "stage", "pseudo-label", "--workspace", str(workspace))
    final = LabelStore.open(workspace / "labels" / "final")
    assert sum(int((final.read_label(name) != 255).sum()) for name in final.names()) == kept
    with page_of(browser, workspace / "labels" / "final") as page:
        assert page.kept() == kept
        assert "already thresholded" in page.text("#thresholded-note")
        assert not page.find("#threshold").is_displayed()
