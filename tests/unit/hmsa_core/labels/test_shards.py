from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io.errors import ConfigError, HmsaError, InputError, LockedError, StoreError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.shards import ShardPlan, ShardWriter, claim_shard, leave, plan_shards, shard_done
from hmsa_core.labels.store.writer import write_manifest
from tests.support.label_maps import maps, toy_classes

KEY = "k" * 64
ONE, TWO = ShardPlan(0, ("i1",), ("",), KEY), ShardPlan(0, ("i1", "i2"), ("", ""), KEY)
NAMES = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=4), unique=True)


def _images(names: list[str]) -> list[tuple[str, str]]:
    return [(name, f"sha-{name}") for name in names]


def _write(root: Path, plan: ShardPlan) -> None:
    with ShardWriter(root, plan) as shard:
        for name in plan.names:
            label, confidence = maps(int(name[1:]))
            shard.add(name, label, confidence, city="münchen", image_path=f"münchen/{name}.png")


@given(NAMES, NAMES, st.integers(1, 5))
def test_plans_hold_each_image_once_and_only_ever_grow(old: list[str], new: list[str], per_shard: int) -> None:
    first = plan_shards([], _images(old), per_shard, KEY)
    again = plan_shards([], _images(old[::-1]), per_shard, KEY)
    assert first == again  # the order of listing does not matter
    grown = plan_shards(first, _images(sorted({*old, *new})), per_shard, KEY)
    assert grown[: len(first)] == first
    placed = [name for plan in grown for name in plan.names]
    assert sorted(placed) == sorted({*old, *new})
    assert [plan.index for plan in grown] == list(range(len(grown)))
    assert all(1 <= len(plan.names) <= per_shard for plan in grown)


def test_images_that_are_no_longer_listed_stay_in_their_shard_and_what_is_no_plan_is_refused() -> None:
    plans = plan_shards([], [("a", "1"), ("b", "1")], 2, KEY)
    assert plan_shards(plans, [("b", "1")], 2, KEY) == plans
    for old, images, per_shard, key, error, message in (
        (plans, [("a", "1"), ("b", "1"), ("c", "1")], 2, "another", ConfigError, "other parameters"),
        (plans, [("a", "2")], 2, KEY, InputError, "'a' has changed"),
        ([], [("a", "1"), ("a", "1")], 2, KEY, InputError, "twice"),
        ([], [], 0, KEY, ConfigError, "at least 1"),
    ):
        with pytest.raises(error, match=message):
            plan_shards(old, images, per_shard, key)


def test_a_shard_is_done_only_with_its_receipt_its_bytes_and_for_its_own_plan(tmp_path: Path) -> None:
    assert not shard_done(tmp_path, TWO)
    _write(tmp_path, TWO)
    assert shard_done(tmp_path, TWO)
    assert not shard_done(tmp_path, ShardPlan(0, ("i1", "i2"), ("", ""), "other"))
    for file in ("shard-00000.parquet", "sidecar/shard-00000.parquet"):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[:400] + bytes([whole[400] ^ 4]) + whole[401:])
        assert not shard_done(tmp_path, TWO)
        (tmp_path / file).write_bytes(whole)
    assert shard_done(tmp_path, TWO)
    (tmp_path / "receipts" / "shard-00000.json").unlink()
    assert not shard_done(tmp_path, TWO)


def test_an_aborted_shard_leaves_nothing_behind(tmp_path: Path) -> None:

    def stopped() -> None:
        with ShardWriter(tmp_path, TWO) as shard:
            shard.add("i1", *maps(1))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert [p for p in tmp_path.rglob("*") if p.is_file() and ".locks" not in p.parts] == []


def test_an_incomplete_shard_cannot_be_acknowledged(tmp_path: Path) -> None:
    shard = ShardWriter(tmp_path, TWO)
    shard.add("i1", *maps(1))
    with pytest.raises(StoreError, match="1 of its images were not written"):
        shard.close()
    assert not (tmp_path / "shard-00000.parquet").exists()


def test_images_come_in_the_order_of_the_plan_and_with_its_content(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, ShardPlan(0, ("i1", "i2"), ("a", ""), KEY)) as shard:
        with pytest.raises(InputError, match="not the plan's next"):
            shard.add("i2", *maps(2))
        with pytest.raises(InputError, match="changed since it was planned"):
            shard.add("i1", *maps(1), image_sha256="b")
        shard.add("i1", *maps(1), image_sha256="a")
        shard.add("i2", *maps(2), image_sha256="b")
        with pytest.raises(InputError, match="no further image"):
            shard.add("i3", *maps(3))


def test_a_skipped_image_is_reported_with_its_reason(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, TWO) as shard:
        shard.skip("i1", "truncated")
        shard.add("i2", *maps(2))
    write_manifest(tmp_path, [TWO], {})
    store = LabelStore.open(tmp_path, strict=True)
    assert store.names() == ["i2"]
    assert store.manifest["shards"][0]["skipped"] == [{"name": "i1", "reason": "truncated"}]


def test_a_manifest_needs_every_receipt_and_one_class_table(tmp_path: Path) -> None:
    plans = [ShardPlan(0, ("i1",), ("",), KEY), ShardPlan(1, ("i2",), ("",), KEY)]
    _write(tmp_path, plans[0])
    with pytest.raises(StoreError, match=r"shard-00001\.json: missing"):
        write_manifest(tmp_path, plans, {})
    _write(tmp_path, plans[1])
    with pytest.raises(StoreError, match="class table"):
        write_manifest(tmp_path, plans, {}, classes=toy_classes())


@pytest.mark.parametrize(
    ("label", "confidence", "message"),
    [
        (np.zeros((4, 4), np.int64), np.zeros((4, 4), np.float32), "uint8 HxW"),
        (np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.float32), "uint8 HxW"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.float32), "confidence is"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), "float"),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.float32), "uint8 HxW"),
        (np.full((4, 4), 19, np.uint8), np.zeros((4, 4), np.float32), "no trainIds of cityscapes"),
        (np.full((4, 4), 254, np.uint8), np.zeros((4, 4), np.float32), "no trainIds"),
        ([[1]], np.zeros((1, 1), np.float32), "numpy array"),
    ],
)
def test_wrong_types_shapes_and_ids_are_refused_and_the_shard_goes_on(
    tmp_path: Path, label: np.ndarray, confidence: np.ndarray, message: str
) -> None:
    with ShardWriter(tmp_path, ONE) as shard:
        with pytest.raises(InputError, match=message):
            shard.add("i1", label, confidence)
        shard.add("i1", *maps(1))
    assert shard_done(tmp_path, ONE)


def test_a_human_label_must_have_the_same_size_and_known_ids_and_only_final_shards_have_a_source_map(
    tmp_path: Path,
) -> None:
    label, confidence = maps(1)
    with ShardWriter(tmp_path / "raw", ONE) as shard:
        for coarse, message in ((label[1:], "coarse must be"), (np.full_like(label, 33), "coarse holds")):
            with pytest.raises(InputError, match=message):
                shard.add("i1", label, confidence, coarse=coarse)
        with pytest.raises(InputError, match="source map"):
            shard.add_coded("i1", label, label, source=label)
        shard.add("i1", label, confidence, coarse=label)
    with ShardWriter(tmp_path / "final", ONE, kind="thresholded") as shard:
        with pytest.raises(InputError, match="source map"):
            shard.add_coded("i1", label, label)
        shard.add_coded("i1", label, label, source=label)


def test_a_shard_that_cannot_be_opened_gives_its_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shard-00000.parquet").mkdir()
    shard = ShardWriter(tmp_path, ONE)
    shard.add("i1", *maps(1))
    with pytest.raises(HmsaError, match="shard-00000"):
        shard.close()
    (tmp_path / "shard-00000.parquet").rmdir()
    with monkeypatch.context() as patch:
        patch.setattr("hmsa_core.labels.store.format.ParquetSink", None)
        with pytest.raises(TypeError):
            ShardWriter(tmp_path, ONE)
    _write(tmp_path, ONE)
    (tmp_path / "sidecar" / "shard-00000.parquet").unlink()
    assert not shard_done(tmp_path, ONE)


_WORKER = """
import os, sys
from pathlib import Path
from hmsa_core.labels.store.shards import claim_shard, plan_shards
from tests.support.label_maps import maps, toy_classes
root = Path(sys.argv[1])
for plan in plan_shards([], [(f"i{i:03d}", "") for i in range(200)], 1, "k" * 64):
    shard = claim_shard(root, plan, classes=toy_classes(2))
    if shard is None:
        continue
    with (root.parent / "claims").open("a") as file:
        file.write(f"{plan.index}\\n")
    with shard:
        for name in plan.names:
            shard.add(name, *maps(int(name[1:]), (6, 7), 2))
"""


@pytest.mark.chain
def test_processes_that_race_for_shards_write_each_exactly_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, str(root)], cwd=Path(__file__).parents[4]) for _ in range(8)
    ]
    assert [worker.wait(300) for worker in workers] == [0] * 8
    plans = plan_shards([], [(f"i{i:03d}", "") for i in range(200)], 1, KEY)
    assert all(shard_done(root, plan) for plan in plans)
    claims = (tmp_path / "claims").read_text().split()
    assert sorted(map(int, claims)) == [plan.index for plan in plans]
    write_manifest(root, plans, {}, classes=toy_classes(2))
    LabelStore.open(root, strict=True)


def test_a_claim_is_refused_while_another_writes_and_after_it_is_done(tmp_path: Path) -> None:
    shard = claim_shard(tmp_path, ONE)
    assert shard is not None
    assert claim_shard(tmp_path, ONE) is None
    with pytest.raises(LockedError, match="shard-00000"):
        ShardWriter(tmp_path, ONE)
    shard.add("i1", *maps(1))
    shard.close()
    assert claim_shard(tmp_path, ONE) is None


def test_a_rank_leaves_the_open_shards_of_other_nodes_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "shards" / ".shard-1.parquet.999999999-01234567.tmp"  # a process of another machine
    theirs.parent.mkdir()
    theirs.write_bytes(b"half a shard")
    leave(tmp_path)  # rank 0 has swept before all began
    with ShardWriter(tmp_path, ShardPlan(0, ("a",), ("0" * 64,), KEY)) as writer:
        writer.add("a", *maps(0), image_sha256="0" * 64)
    assert theirs.exists()
