from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa_core.data.sampling import Centroids, find_centroids
from hmsa_core.io.engine import Engine
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.labels import ConfidenceCode, LabelStore, ThresholdPolicy
from hmsa_core.labels.finalise import (
    CENTROIDS,
    STATISTICS,
    CentroidSettings,
    Recipe,
    finalise,
    measured_masks,
    read_mask,
)
from hmsa_core.labels.merge import MergeRules, merge_labels
from hmsa_core.labels.review import UNTOUCHED
from hmsa_core.labels.thresholds.policy import ClassPolicy, from_threshold
from hmsa_core.taxonomy import cityscapes
from tests.support.label_maps import coarse_of, maps, opened, toy_classes, write_store
from tests.support.training import folder_bytes

CODE = ConfidenceCode()
POLICY = from_threshold(0.7, cityscapes())
RULES = MergeRules.default(cityscapes())


@dataclass(frozen=True)
class Human:
    """Human labels of every second image (a class, because workers get a copy)."""

    def __call__(self, row: Mapping[str, Any]) -> np.ndarray | None:
        i = int(row["name"].split("_")[1])
        return coarse_of(maps(i)[0], i) if i % 2 else None


@dataclass(frozen=True)
class Flags:
    """Image 2 is flagged as a whole, image 1 in its left columns."""

    def __call__(self, name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray] | None:
        columns = {"_000002_": width, "_000001_": 5}.get(name[5:13], 0)
        flagged = np.broadcast_to(np.arange(width) < columns, (height, width))
        return (flagged, np.full((height, width), UNTOUCHED, np.uint8)) if columns else None


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    path = tmp_path_factory.mktemp("raw") / "store"
    write_store(path, 6)
    return LabelStore.open(path)


def _recipe(**changes: Any) -> Recipe:
    options = {"policy": POLICY, "rules": RULES, "human": Human(), "centroids": CentroidSettings(tile=16)}
    return Recipe(**{**options, **changes})


def _expected(raw: LabelStore, name: str) -> np.ndarray:
    i = int(name.split("_")[1])
    label, confidence = maps(i)
    passed = np.where(confidence >= np.float32(0.7), label, 255).astype(np.uint8)
    return merge_labels(passed, Human()(raw.row(name)), RULES)[0]


def test_the_final_store_holds_thresholded_merged_labels_their_sources_and_what_made_them(
    raw: LabelStore, tmp_path: Path
) -> None:
    finalise(raw, _recipe(), tmp_path, lineage={"stage": "pseudo-label"})
    final = opened(tmp_path)
    policy = final.manifest["policy"]
    assert (policy["digest"], policy["raw_store"], policy["thresholds"]["road"]) == (POLICY.digest, raw.digest, "0.70")
    assert (final.lineage["teacher"], final.lineage["stage"]) == (raw.lineage["teacher"], "pseudo-label")
    assert {e["file"] for e in final.manifest["extras"]} == {CENTROIDS, STATISTICS}
    assert final.kind == "thresholded"
    assert final.names() == raw.names()
    for name in final.names():
        label, code = final.read(name)
        assert np.array_equal(label, _expected(raw, name))
        source, raw_code = final.read_source(name), raw.read(name)[1]
        teacher = np.isin(source, (1, 3))
        assert np.array_equal(code, np.where(teacher, raw_code, 0))
        assert np.array_equal(source == 0, label == 255)
        assert final.row(name)["city"] == raw.row(name)["city"]


def test_a_torn_or_lost_file_next_to_the_shards_is_named_at_opening(raw: LabelStore, tmp_path: Path) -> None:
    finalise(raw, _recipe(), tmp_path)
    (tmp_path / CENTROIDS).write_bytes(b"x")
    (tmp_path / STATISTICS).unlink()
    found = LabelStore.open(tmp_path).problems
    assert {problem.file: problem.kind for problem in found} == {CENTROIDS: "changed", STATISTICS: "missing"}


def test_statistics_and_centroids_are_those_of_the_final_labels(raw: LabelStore, tmp_path: Path) -> None:
    statistics = finalise(raw, _recipe(), tmp_path)
    assert json.loads((tmp_path / STATISTICS).read_text()) == statistics
    labels = {name: _expected(raw, name) for name in raw.names()}
    stacked = np.stack(list(labels.values()))
    counts = np.bincount(stacked.ravel(), minlength=256)
    assert [c["final"] for c in statistics["classes"]] == counts[:19].tolist()
    assert statistics["labelled"] == stacked.size - counts[255]
    assert sum(c["images"] for c in statistics["cities"].values()) == statistics["images"] == 6
    conflicts = 0
    for i in (1, 3, 5):
        label, confidence = maps(i)
        human = coarse_of(label, i)
        conflicts += np.count_nonzero((human != 255) & (confidence >= np.float32(0.7)) & (human != label))
    assert sum(c["pixels"] for c in statistics["conflicts"]) == conflicts > 0
    expected = Centroids.collect((n, find_centroids(label, 19, 16)) for n, label in labels.items())
    found = Centroids.load(tmp_path / CENTROIDS)
    assert np.array_equal(found.values, expected.values)


def test_stopping_and_going_on_gives_the_same_bytes_without_doing_shards_again(
    raw: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finalise(raw, _recipe(), tmp_path / "whole")
    calls = 0

    def stop_at_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finalise(raw, _recipe(), tmp_path / "parts", check_stop=stop_at_third)
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("shard-*.parquet")}
    assert len(done) == 2
    seen: list[int] = []
    finalise(raw, _recipe(), tmp_path / "parts", advance=seen.append)
    assert seen == [2, 2, 2]
    assert {n: (tmp_path / "parts" / n).stat().st_mtime_ns for n in done} == done
    assert folder_bytes(tmp_path / "whole", (".lock",)) == folder_bytes(tmp_path / "parts", (".lock",))


@pytest.mark.chain
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_same_bytes_as_one_process(raw: LabelStore, tmp_path: Path, workers: int) -> None:
    finalise(raw, _recipe(reviewed=Flags()), tmp_path / "one")
    finalise(raw, _recipe(reviewed=Flags()), tmp_path / "more", engine=Engine(workers=workers))
    assert folder_bytes(tmp_path / "one", (".lock",)) == folder_bytes(tmp_path / "more", (".lock",))


def test_shards_of_another_recipe_are_never_reused(raw: LabelStore, tmp_path: Path) -> None:
    finalise(raw, _recipe(), tmp_path)
    finalise(raw, _recipe(policy=from_threshold(0.99, cityscapes()), rules=None), tmp_path)
    name = raw.names()[0]
    label, confidence = maps(0)
    assert np.array_equal(opened(tmp_path).read_label(name), np.where(confidence >= np.float32(0.99), label, 255))


@pytest.mark.parametrize(
    "change",
    [
        {"policy": from_threshold(0.71, cityscapes())},
        {"rules": None},
        {"masks": {(24, 40): np.ones((24, 40), bool)}},
        {"centroids": CentroidSettings(tile=8)},
    ],
)
def test_the_key_changes_with_everything_that_decides_a_label(raw: LabelStore, change: dict[str, Any]) -> None:
    assert _recipe(**change).key(raw) != _recipe().key(raw)


def test_reviews_and_camera_masks_win_over_everything(raw: LabelStore, tmp_path: Path) -> None:
    mask = np.zeros((24, 40), bool)
    mask[-3:] = True
    statistics = finalise(raw, _recipe(reviewed=Flags(), masks={(24, 40): mask}), tmp_path)
    final = opened(tmp_path)
    assert len(final) == 5
    assert [s["name"] for s in statistics["skipped"]] == ["city2_000002_000019"]
    for name in final.names():
        expected = np.where(mask, 255, _expected(raw, name))
        if "_000001_" in name:
            expected[:, :5] = 255
        assert np.array_equal(final.read_label(name), expected)
        assert (final.read_source(name)[mask] == 0).all()


def test_what_does_not_belong_to_the_raw_store_is_refused_before_anything_is_written(
    raw: LabelStore, tmp_path: Path
) -> None:
    entries = tuple(ClassPolicy(n, 9, "measured") for n in cityscapes().classes)
    bound = {"teacher": "x", "scales": [1.0], "flip": False, "precision": "fp32"}
    finalise(raw, _recipe(), tmp_path / "final")
    for store, change, message in (
        (raw, {"policy": ThresholdPolicy(cityscapes(), entries, binding=bound)}, "another teacher"),
        (raw, {"policy": from_threshold(0.5, toy_classes())}, "classes"),
        (raw, {"rules": MergeRules.default(toy_classes())}, "merge rules"),
        (LabelStore.open(tmp_path / "final"), {}, "thresholded already"),
    ):
        with pytest.raises(ConfigError, match=message):
            finalise(store, _recipe(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_raw_shard_stops_the_work_and_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "raw", 4)
    (tmp_path / "raw" / "shard-00001.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="shard-00001"):
        finalise(LabelStore.open(tmp_path / "raw"), _recipe(), tmp_path / "final")
    assert not (tmp_path / "final" / "manifest.json").exists()


def test_appended_images_leave_finished_shards_alone(tmp_path: Path) -> None:
    write_store(tmp_path / "raw", 4)
    finalise(LabelStore.open(tmp_path / "raw"), _recipe(), tmp_path / "final")
    before = {p.name: p.stat().st_ino for p in (tmp_path / "final").glob("shard-*.parquet")}
    write_store(tmp_path / "raw", 2, start=4)
    grown = LabelStore.open(tmp_path / "raw")
    statistics = finalise(grown, _recipe(), tmp_path / "final")
    assert statistics["images"] == 6
    assert opened(tmp_path / "final").names() == grown.names()
    after = {p.name: p.stat().st_ino for p in (tmp_path / "final").glob("shard-*.parquet")}
    assert len(after) == 3
    assert before.items() <= after.items()


def test_a_review_of_one_image_remakes_its_shard_only(raw: LabelStore, tmp_path: Path) -> None:
    finalise(raw, _recipe(), tmp_path)
    before = {p.name: p.stat().st_ino for p in tmp_path.glob("shard-*.parquet")}
    recipe = _recipe(reviewed=Flags(), per_image={"city1_000001_000019": "flagged on the left"})
    assert recipe.key(raw) == _recipe().key(raw)
    finalise(raw, recipe, tmp_path)
    changed = [p.name for p in sorted(tmp_path.glob("shard-*.parquet")) if before[p.name] != p.stat().st_ino]
    assert changed == ["shard-00000.parquet"]
    assert (opened(tmp_path).read_label("city1_000001_000019")[:, :5] == 255).all()


def _truth(void_rows: int, shape: tuple[int, int] = (10, 12)) -> np.ndarray:
    truth = np.zeros(shape, np.uint8)
    truth[shape[0] - void_rows :] = 255
    return truth


def test_what_is_void_in_nearly_all_images_of_a_camera_is_its_mask() -> None:
    labels = [_truth(2)] * 19 + [_truth(5)]
    masks = measured_masks(labels, 0.9, 20)
    assert np.array_equal(masks[10, 12], _truth(2) == 255)
    labels = [_truth(2)] * 9 + [_truth(0)]
    assert measured_masks(labels, 0.9, 1) == {}, "exactly the share is not more than the share"
    assert measured_masks(labels, 0.89, 1) != {}


def test_cameras_of_other_sizes_or_with_few_images_get_no_mask_of_others() -> None:
    labels = [_truth(2)] * 20 + [_truth(1, (8, 8))] * 3
    assert set(measured_masks(labels, 0.9, 20)) == {(10, 12)}
    assert set(measured_masks(labels, 0.9, 3)) == {(10, 12), (8, 8)}


def test_a_mask_file_reads_back_and_must_be_grey(tmp_path: Path) -> None:
    mask = _truth(3) == 255
    cv2.imwrite(str(tmp_path / "mask.png"), np.where(mask, 0, 255).astype(np.uint8))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "rgb.png"), np.zeros((4, 4, 3), np.uint8))
    for file, message in (("rgb.png", "8-bit grey"), ("none.png", "not found")):
        with pytest.raises(InputError, match=message):
            read_mask(tmp_path / file)
