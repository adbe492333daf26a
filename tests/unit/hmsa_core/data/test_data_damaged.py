"""Damaged files in great numbers: read alone, taken into an index, given to a labelling job."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.data.decode import REASONS, read_image
from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.data.prepare import build
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.inference.folder import infer_job
from hmsa_core.labels import LabelStore
from tests.support.inference import infer_spec, job_context, save_model
from tests.support.training import write_data
from tests.unit.hmsa_core.data.damaged_images import (
    SIZE,
    bomb,
    fuzz_in_a_process_of_its_own,
    images,
    labels,
    mutated,
    shown,
)

from .conftest import blocks, encode, picture

pytestmark = pytest.mark.fault  # thousands of damaged files


def test_a_thousand_damaged_files_are_refused_with_a_reason_or_decoded(tmp_path):
    outcome, grown = fuzz_in_a_process_of_its_own(tmp_path, seed=20, count=1000)
    assert outcome["image decoded"] > 100  # else the mutations are too wild to test anything
    assert outcome["label decoded"] > 20
    assert outcome["pair decoded"] > 10
    assert outcome["pair size-mismatch"] > 5
    assert len({found.split()[1] for found in outcome}) >= 10
    assert grown < 200, f"{grown} MB more than before"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_more_damaged_files(tmp_path, seed):
    fuzz_in_a_process_of_its_own(tmp_path, seed=100 + seed, count=5000)


EACH = 36  # files of each kind
KINDS = ("good", "image", "image bomb", "label", "label bomb", "other size", "other ids", "wrong name", "constant")


def _data_set(root: Path) -> dict[str, str]:
    """Images and label maps in two folders, `EACH` of each kind: {name: kind}."""
    rng = np.random.default_rng(30)
    kinds = {}
    for i in range(EACH * len(KINDS)):
        name, kind = f"f{i:04d}", KINDS[i % len(KINDS)]
        kinds[name] = kind
        image, label = (".png", encode(picture(1000 + i, SIZE), "PNG")), (".png", encode(blocks(i, size=SIZE), "PNG"))
        if kind == "image":
            suffix, data = images(1000 + i)[i // len(KINDS) % 11]
            image = (suffix, mutated(rng, data))
        elif kind == "label":
            suffix, data = labels(i)[i // len(KINDS) % 7]
            label = (suffix, mutated(rng, data))
        elif kind.endswith("bomb"):
            suffix, data = bomb(rng)
            image, label = ((suffix, data), label) if kind == "image bomb" else (image, (suffix, data))
        elif kind == "other size":
            height, width = SIZE[0] + int(rng.integers(-3, 4)), SIZE[1] + int(rng.integers(1, 9))
            label = (".png", encode(blocks(i, size=(height, width)), "PNG"))
        elif kind == "other ids":
            label = (".png", encode(blocks(i, (7, 8, int(rng.integers(60, 255))), SIZE), "PNG"))
        elif kind == "wrong name":
            image = (".jpg", image[1])
        elif kind == "constant":
            image = (".png", encode(np.full((*SIZE, 3), i % 251, np.uint8) + np.uint8([0, 1, i // 251]), "PNG"))
        for folder, (suffix, data) in (("images", image), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{name}{suffix}").write_bytes(data)
    return kinds


def test_hundreds_of_damaged_files_become_rows_of_the_quarantine_or_right_rows_of_the_index(tmp_path):
    kinds = _data_set(tmp_path / "data")
    source = SourceSpec(kind="folder", root=str(tmp_path / "data"), classes="cityscapes", max_bad=1.0)
    summary = build(source, RolesSpec(), tmp_path / "out", tile=16)
    refused = {r.name: r for r in read_quarantine(tmp_path / "out/quarantine.parquet")}
    indexed = {s.name: s for s in Index.load(tmp_path / "out/target.parquet").samples}
    assert refused.keys() | indexed.keys() == kinds.keys()
    assert not refused.keys() & indexed.keys()
    assert summary.refused == Counter(r.reason for r in refused.values())
    for name, row in refused.items():
        assert row.reason in REASONS
        turned = kinds[name] == "image" and row.reason == "size-mismatch"  # a good image, but of another size
        assert row.part == ("label" if turned or kinds[name].startswith(("label", "other")) else "image")
        assert (tmp_path / "data" / row.path).is_file()
        assert row.detail
    sure = {
        "other size": "size-mismatch",
        "other ids": "ids-out-of-range",
        "wrong name": "wrong-extension",
        "constant": "constant",
    }
    for kind, reason in sure.items():
        assert {refused[n].reason for n, k in kinds.items() if k == kind} == {reason}
    assert all(name in indexed for name, kind in kinds.items() if kind == "good")
    assert all(name in refused for name, kind in kinds.items() if kind.endswith("bomb"))
    for name, sample in indexed.items():
        data = (tmp_path / "data" / sample.image).read_bytes()
        assert (
            (sample.height, sample.width)
            == shown(data).shape[:2]
            == read_image(tmp_path / "data" / sample.image).shape[:2]
        )
        assert sample.image_sha256 == hashlib.sha256(data).hexdigest()
        assert kinds[name] in ("good", "image", "label")
        with Image.open(tmp_path / "data" / sample.label) as label:
            assert label.size == (sample.width, sample.height)


def test_a_labelling_job_labels_what_can_be_read_and_names_the_rest(tmp_path, monkeypatch):
    count = 88
    write_data(tmp_path, images=count, size=SIZE)
    index, rng, wrong, changed = Index.load(tmp_path / "toy.parquet"), np.random.default_rng(31), [], set()
    for i, sample in enumerate(index.samples):
        suffix, data = bomb(rng) if i % 8 == 7 else images(i)[i % 11]
        path = tmp_path / f"toy/damaged_{i:03d}{suffix}"
        path.write_bytes(data if i % 8 == 7 else mutated(rng, data))
        # Half of them changed behind the index's back; the others were like this when their digest was taken.
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if i % 8 < 4 else sample.image_sha256
        wrong.append(dataclasses.replace(sample, image=f"toy/{path.name}", image_sha256=digest))
        changed |= {sample.name} if i % 8 >= 4 else set()
    Index.write(tmp_path / "toy.parquet", wrong, index.classes, index.root)
    monkeypatch.setattr(infer_job, "MAX_SKIPPED", 1.0)  # else the run ends when a twentieth is bad
    spec = infer_spec(
        tmp_path, tmp_path / "work", save_model(tmp_path / "model"), scales=(1.0,), flip=False, images_per_shard=16
    )
    summary = infer_job.run(spec, job_context(tmp_path / "work"))
    store = LabelStore.open(tmp_path / "work/store", strict=True)
    labelled = {name for name in store.names() if store.read(name)}  # every label can be read
    skipped = {row["name"]: row["reason"].split(":")[0] for row in summary["skipped"]}
    # `prepare` judges a file before its digest is in an index; a digest that matches is not judged again, only read.
    assert {name for name, reason in skipped.items() if reason == "changed"} == changed
    assert labelled | skipped.keys() == {sample.name for sample in wrong}
    assert len(labelled) == summary["images"] > 5
    assert len(set(skipped.values())) >= 4
