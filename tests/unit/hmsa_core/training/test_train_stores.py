"""A training on several label stores."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.config import PseudoConfig
from hmsa_core.data.index import Index
from hmsa_core.data.plan import EpochPlan
from hmsa_core.data.sampling import Centroids
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore
from hmsa_core.models import read_meta
from hmsa_core.spec import TrainSpec
from tests.support.training import pseudo_data, run, sample, train_spec, write_data, write_store

PARTS = ("b", "a", "c")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine labels, three stores, and the store `union` of all their images."""
    folder = tmp_path_factory.mktemp("stores")
    write_data(folder)
    samples, centroids = [], []
    for i, part in enumerate(PARTS):
        index = Index.load(write_data(folder, prefix=part, images=3 + i, first_seed=100 * (i + 1)))
        write_store(folder, folder / f"store-{part}", index=part)
        samples += index.samples
        centroids += Centroids.load(folder / f"{part}-centroids.parquet").split().items()
    Index.write(folder / "union.parquet", samples, index.classes, "target")
    Centroids.collect(centroids).write(folder / "union-centroids.parquet")
    write_store(folder, folder / "store-union", index="union")
    return folder


def weights(spec: TrainSpec) -> bytes:
    return (run(spec) / "model.safetensors").read_bytes()


def test_a_training_over_three_stores_equals_the_one_over_their_union(data: Path, tmp_path: Path) -> None:
    union = train_spec(
        data, tmp_path / "union", epochs=1, pseudo=pseudo_data(data, data / "store-union", index="union")
    )
    # One of the three lies with its images in a folder of its own, as in another workspace.
    away = tmp_path / "away"
    shutil.copytree(data, away)
    shutil.rmtree(data / "c")
    three = [*pseudo_data(data, data / "store-b", index="b", weight=0.3)]
    three += pseudo_data(data, data / "store-a", index="a", weight=0.3)
    three += pseudo_data(away, away / "store-c", index="c", weight=0.3, root=away)
    try:
        several = train_spec(data, tmp_path / "several", epochs=1, pseudo=three)
        found = weights(several)
    finally:
        shutil.copytree(away / "c", data / "c")
    assert found == weights(union)
    lineage = read_meta(several.work / "model")["lineage"]
    digests = [LabelStore.open(data / f"store-{part}").digest for part in PARTS]
    assert lineage["stores"] == [{"digest": digest, "images": 3 + i, "weight": 0.3} for i, digest in enumerate(digests)]
    assert lineage["images"] == 8 + 3 + 4 + 5


def test_two_stores_with_an_image_of_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    twice = (*pseudo_data(data, data / "store-a", index="a"), *pseudo_data(data, data / "store-union", index="union"))
    with pytest.raises(ConfigError, match="store-union: its image a_000 has the name of one in another store"):
        weights(train_spec(data, tmp_path, pseudo=twice))


def test_images_of_a_store_are_taken_as_often_as_its_weight_says() -> None:
    centroids = [(f"{part}{i}", np.array([[i % 2, 1, 1, 9]], np.int32)) for part in "fxy" for i in range(40)]
    names = {part: [sample(f"{part}{i}") for i in range(40)] for part in "fxy"}
    plan = EpochPlan(
        names["f"],
        Centroids.collect(centroids),
        num_classes=2,
        seed=3,
        epochs=40,
        epoch_samples=20,
        pseudo=names["x"] + names["y"],
        pseudo_centroids=Centroids.collect(centroids),
        pseudo_weights=[3.0] * 40 + [1.0] * 40,
        pseudo_config=PseudoConfig(share=0.8),
    )
    taken = Counter(crop.sample.name[0] for epoch in range(40) for crop in plan.crops(epoch))
    assert taken == {"f": 160, "x": 480, "y": 160}
    report = plan.report(0)
    assert (report["crops"], report["fine"], report["pseudo"]) == (20, 4, 16)
    assert sum(report["per_class"]["pseudo"]) + report["random"]["pseudo"] == 16
