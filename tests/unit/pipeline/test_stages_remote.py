"""Stages whose data set lies on an object store: the same index, the same labels as from a disk."""

from __future__ import annotations

import pytest

from hmsa_core import models
from hmsa_core.data.index import Index
from hmsa_core.labels import LabelStore
from pipeline.cli.main import main
from pipeline.jobs import support
from pipeline.stages import auto_infer, prepare, pseudo_label
from tests.support.inference import run_job_here, small_model
from tests.support.photographs import photographs, work_over


@pytest.mark.usefixtures("no_tools")
def test_a_data_set_on_an_object_store_gives_the_index_and_the_labels_of_a_disk(bucket, tmp_path, monkeypatch, capsys):
    data = photographs(tmp_path / "data", "abcdefgh", "ij", "extra", 7)
    for path in data.rglob("*.*"):
        bucket.put("lab", f"fleet/data/{path.relative_to(data)}", path.read_bytes())
    monkeypatch.setattr(support, "run_job", run_job_here)
    found = []
    for name, root in (("disk", str(data)), ("remote", "s3://lab/fleet/data")):
        changes = {"data.target.root": root, "pseudo_label.threshold": 0.5}
        ws = work_over(tmp_path / name, data, "extra", calibrate="ef", report="gh", changes=changes)
        prepare.run(ws)
        classes = Index.load(ws.path("data/index/learn.parquet")).classes
        model = small_model("single", classes.num_classes)
        models.save(model, ws.path("models/teacher"), class_table=classes.to_json(), lineage={})
        auto_infer.run(ws)
        pseudo_label.run(ws)
        files = ("data/index/unlabelled.parquet", "data/index/summary.json", "labels/raw/manifest.json")
        found.append([ws.path(file).read_bytes() for file in (*files, "labels/final/manifest.json")])
    assert found[0] == found[1]
    assert main(["verify", str(ws.path("labels/raw"))]) == 0
    assert len(LabelStore.open(ws.path("labels/raw"))) == 2
