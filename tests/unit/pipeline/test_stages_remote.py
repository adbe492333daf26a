"""Stages whose data set lies on an object store: the same index, the same labels as from a disk."""

from __future__ import annotations

import re

import pytest

from hmsa_core import models
from hmsa_core.data.index import Index
from hmsa_core.inference import infer
from hmsa_core.labels import LabelStore
from pipeline.cli.main import main
from pipeline.init import InitRequest, init_workspace
from pipeline.stages import auto_infer, prepare, pseudo_label, support
from pipeline.workspace import Workspace
from tests.support.inference import job_context, small_model
from tests.support.photographs import photographs, work_over


@pytest.mark.usefixtures("no_tools")
def test_a_data_set_on_an_object_store_gives_the_index_and_the_labels_of_a_disk(bucket, tmp_path, monkeypatch, capsys):
    data = photographs(tmp_path / "data", "abcdefgh", "ij", "extra", 7)
    for path in data.rglob("*.*"):
        bucket.put("lab", f"fleet/data/{path.relative_to(data)}", path.read_bytes())
    monkeypatch.setattr(support, "run_job", lambda _ws, spec: infer.run(spec, job_context(spec.work)))
    found = []
    for name, root in (("disk", str(data)), ("remote", "s3://lab/fleet/data")):
        init_workspace(InitRequest(tmp_path / name, "tiny", make_data=False))
        ws = work_over(tmp_path / name, data, "extra", calibrate="e, f", report="g, h", more="    max_bad: 0.5\n")
        text = ws.path("params.yaml").read_text().replace(str(data), root)
        text = re.sub(r"threshold: policy", "threshold: 0.5", text)
        ws.path("params.yaml").write_text(text)
        ws = Workspace(ws.root)
        prepare.run(ws)
        classes = Index.load(ws.path("data/index/learn.parquet")).classes
        models.save(
            small_model("single", classes.num_classes),
            ws.path("models/teacher"),
            class_table=classes.to_json(),
            lineage={},
        )
        auto_infer.run(ws)
        pseudo_label.run(ws)
        files = ("data/index/unlabelled.parquet", "data/index/summary.json", "labels/raw/manifest.json")
        found.append([ws.path(file).read_bytes() for file in (*files, "labels/final/manifest.json")])
    assert found[0] == found[1]
    assert main(["verify", str(ws.path("labels/raw"))]) == 0
    assert len(LabelStore.open(ws.path("labels/raw"))) == 2
