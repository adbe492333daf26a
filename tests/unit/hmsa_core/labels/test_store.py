from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hmsa_core.io import sealed
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import ConfigError, InputError, LockedError, StoreError
from hmsa_core.labels import ConfidenceCode, LabelStore, LabelStoreWriter
from hmsa_core.labels.store.format import footer_sha256
from hmsa_core.taxonomy import mapillary
from tests.support.label_maps import maps, opened, stored, toy_classes, write_store

CODE = ConfidenceCode()


@pytest.mark.parametrize("codec", ["png", "webp"])
@pytest.mark.parametrize("per_shard", [1, 2, 100])
def test_what_was_written_is_read_back_by_name(tmp_path: Path, codec: str, per_shard: int) -> None:
    given = {f"x{i}": maps(i, (11 + i, 17)) for i in range(5)}
    with LabelStoreWriter(tmp_path, {}, per_shard, codec=codec) as writer:  # type: ignore[arg-type]
        for name, (label, confidence) in given.items():
            writer.add(name, label, confidence)
    store = opened(tmp_path)
    assert store.names() == list(given)
    for name, (label, confidence) in reversed(given.items()):
        got, code = store.read(name)
        assert np.array_equal(got, label)
        assert np.array_equal(code, CODE.encode(confidence))
        assert np.array_equal(store.read_label(name), label)


def test_metadata_and_lineage_are_kept_and_absent_lineage_is_unknown(tmp_path: Path) -> None:
    write_store(tmp_path, lineage={"teacher": "t" * 64, "note": [1, 2]})
    store = opened(tmp_path)
    row = store.row("city1_000001_000019")
    assert (row["city"], row["image_path"], row["height"], row["width"]) == (
        "city1",
        "img/city1_000001_000019.png",
        24,
        40,
    )
    assert [r["name"] for r in store.rows()] == store.names()
    assert store.lineage["teacher"] == "t" * 64
    assert store.lineage["note"] == [1, 2]
    assert store.lineage["scales"] == store.lineage["licences"] == "unknown"
    assert store.manifest["edges"] == list(CODE.edges)
    assert store.classes.name == "cityscapes"
    with pytest.raises(InputError, match="no source"):
        store.read_source(store.names()[0])


@pytest.mark.parametrize("first", [True, False])
def test_a_refused_image_that_was_to_open_a_shard_costs_only_itself(tmp_path: Path, first: bool) -> None:
    label, confidence = maps(0, (4, 5))
    writer = LabelStoreWriter(tmp_path, {}, images_per_shard=1)
    if not first:
        writer.add("good", label, confidence)
    with pytest.raises(InputError, match="33"):
        writer.add("bad", np.full((4, 5), 33, np.uint8), confidence)
    writer.close()
    assert opened(tmp_path).names() == ([] if first else ["good"])


def test_a_manifest_that_is_damaged_after_the_store_was_opened_is_named(tmp_path: Path) -> None:
    write_store(tmp_path)
    store = opened(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"codec"', b'"codek"', 1))
    assert [(p.file, p.kind) for p in store.verify()] == [("manifest.json", "changed")]
    manifest.unlink()
    assert [(p.file, p.kind) for p in store.verify()] == [("manifest.json", "missing")]


def test_names_are_unique_and_unknown_ones_are_reported(tmp_path: Path) -> None:
    writer = LabelStoreWriter(tmp_path, {})
    writer.add("a", *maps(0))
    with pytest.raises(InputError, match="'a' occurs twice"):
        writer.add("a", *maps(1))
    for bad in ("", "a\nb", "\x00"):
        with pytest.raises(InputError, match="name"):
            writer.add(bad, *maps(1))
    writer.close()
    with pytest.raises(InputError, match="no image named 'b'"):
        LabelStore.open(tmp_path).read("b")


def test_ids_follow_the_class_table_that_was_given(tmp_path: Path) -> None:
    label = np.full((4, 4), 64, np.uint8)
    confidence = np.ones((4, 4), np.float32)
    with LabelStoreWriter(tmp_path / "m", {}, classes=mapillary()) as writer:
        writer.add("a", label, confidence)
    assert opened(tmp_path / "m").classes == mapillary()
    with LabelStoreWriter(tmp_path / "t", {"class_table": toy_classes().to_json()}) as writer:
        with pytest.raises(InputError, match="toy5"):
            writer.add("a", label, confidence)
        writer.add("a", np.full((4, 4), 255, np.uint8), confidence)
    assert opened(tmp_path / "t").classes == toy_classes()


def test_new_images_are_appended_and_old_shards_stay_as_they_were(tmp_path: Path) -> None:
    first = write_store(tmp_path, 3)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("shard-*.parquet")}
    second = write_store(tmp_path, 3, start=3)
    store = opened(tmp_path)
    assert store.names() == [*first, *second]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    for name, (label, _, _) in {**first, **second}.items():
        assert np.array_equal(store.read(name)[0], label)


def test_another_teacher_never_writes_into_an_existing_store(tmp_path: Path) -> None:
    write_store(tmp_path, 2, lineage={"teacher": "a"})
    with pytest.raises(ConfigError, match="another teacher"):
        LabelStoreWriter(tmp_path, {"teacher": "b"})
    with pytest.raises(ConfigError, match="another teacher"):
        LabelStoreWriter(tmp_path, {"teacher": "a"}, codec="webp")
    assert len(opened(tmp_path)) == 2


def test_an_error_while_writing_leaves_no_store_and_it_can_be_written_again(tmp_path: Path) -> None:
    writer = LabelStoreWriter(tmp_path, {"teacher": "a" * 64}, 1)

    def stopped() -> None:
        with writer:
            writer.add("left-over", *maps(9))
            writer.add("another", *maps(8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    with pytest.raises(InputError, match="closed"):
        writer.add("b", *maps(1))
    assert list(tmp_path.glob("shard-*.parquet"))
    with pytest.raises(StoreError, match="never finished|no label store"):
        LabelStore.open(tmp_path)
    given = write_store(tmp_path, 1)
    # The shard of the stopped run that the new one did not overwrite is gone: training takes the store.
    assert opened(tmp_path).names() == list(given)


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    writer = LabelStoreWriter(tmp_path, {})
    with pytest.raises(LockedError, match="label store"):
        LabelStoreWriter(tmp_path, {})
    writer.close()
    LabelStoreWriter(tmp_path, {}).close()


def test_a_newer_format_is_refused_with_its_version(tmp_path: Path) -> None:
    write_store(tmp_path, 1)
    value = {k: v for k, v in sealed.read(tmp_path / "manifest.json").items() if k != "digest"}
    sealed.write(tmp_path / "manifest.json", {**value, "version": 3})
    with pytest.raises(StoreError, match="version 3"):
        LabelStore.open(tmp_path)
    sealed.write(tmp_path / "manifest.json", {**value, "format": "else"})
    with pytest.raises(StoreError, match="format is 'else'"):
        LabelStore.open(tmp_path)


def test_a_store_travels_to_loader_workers_and_survives_a_fork(tmp_path: Path) -> None:
    given = write_store(tmp_path, 2)
    store = opened(tmp_path)
    name = store.names()[1]
    store.read(name)
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.read(name)[0], given[name][0])
    store._pid -= 1  # what a forked child sees
    assert np.array_equal(store.read(name)[0], given[name][0])


def test_more_shards_than_may_be_open_are_all_served(tmp_path: Path) -> None:
    given = write_store(tmp_path, 5, per_shard=1)
    store = LabelStore.open(tmp_path)
    store.open_files = 2
    for name in [*given, *given]:
        assert np.array_equal(store.read(name)[0], given[name][0])
    assert len(store._files) == 2


def test_duckdb_and_polars_read_the_shards_as_they_are(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    polars = pytest.importorskip("polars")
    given = write_store(tmp_path, 5)
    shards = str(tmp_path / "shard-*.parquet")
    rows = duckdb.sql(f"select name, city, height, label from '{shards}' order by name").fetchall()
    assert [r[0] for r in rows] == sorted(given)
    for name, city, height, png in rows:
        assert (city, height) == (name.split("_")[0], 24)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), given[name][0])
    frame = polars.read_parquet(shards)
    assert sorted(frame["name"].to_list()) == sorted(given)
    counted = duckdb.sql(
        f"select class, sum(pixels) from '{tmp_path / 'sidecar' / 'shard-*.parquet'}' where code >= 90 group by class"
    ).fetchall()
    expected = np.zeros(19, np.int64)
    for label, confidence, _ in given.values():
        expected += np.bincount(label[confidence >= np.float32(0.9)], minlength=19)
    assert {int(c): int(n) for c, n in counted} == {i: int(n) for i, n in enumerate(expected) if n}


MEMORY = """
import json, resource, sys
import numpy as np
from hmsa_core.labels import LabelStore, LabelStoreWriter, StoreStatistics
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
base = peak()
root, count = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
label = rng.integers(0, 19, (16, 16)).astype(np.uint8)
p = rng.random((16, 16), dtype=np.float32)
with LabelStoreWriter(root, {}, 256) as writer:
    for i in range(count):
        writer.add(f"n{i:06d}", np.roll(label, i % 16), np.roll(p, i % 7), city=f"c{i % 20}")
store = LabelStore.open(root)
assert store.verify() == []
for name in store.names():
    store.read(name)
kept = StoreStatistics.open(root).kept(90)
assert kept.shape == (count, 19)
print(json.dumps({"above_base": peak() - base}))
"""


@pytest.mark.parametrize(("rows", "most"), [(1_000, 200), pytest.param(20_000, 300, marks=pytest.mark.slow)])
def test_many_rows_are_written_verified_and_read_in_little_memory(tmp_path: Path, rows: int, most: float) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[4])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["above_base"] < most


def test_a_store_of_no_images_one_of_none_a_shard_and_closing_twice(tmp_path: Path) -> None:
    LabelStoreWriter(tmp_path / "empty", {}).close()
    store = opened(tmp_path / "empty")
    assert (store.names(), list(store.rows())) == ([], [])
    with pytest.raises(ConfigError, match="at least 1"):
        LabelStoreWriter(tmp_path / "one", {}, 0)
    writer = LabelStoreWriter(tmp_path / "one", {})
    writer.add("a", *maps(0))
    assert writer.close() == writer.close() == opened(tmp_path / "one").digest
    writer.abort()  # nothing is left to give up
    assert len(opened(tmp_path / "one")) == 1


def _rewrite(root: Path, row_group_size: int = 1, **changes: object) -> None:
    """Make a manifest that matches a changed shard: what an error of a writer would leave."""
    path = root / "shard-00000.parquet"
    table = pq.read_table(path)
    for column, value in changes.items():
        at = table.schema.get_field_index(column)
        table = table.set_column(at, table.schema.field(at), pa.array([value], table.schema.field(at).type))
    pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True)
    value = {k: v for k, v in sealed.read(root / "manifest.json").items() if k != "digest"}
    value["shards"][0] |= {
        "size_bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "footer_sha256": footer_sha256(path),
    }
    sealed.write(root / "manifest.json", value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_sha256": "0" * 64}, "label is damaged"),
        ({"height": 9}, "recorded"),
        ({"name": "other"}, "manifest says"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    stored(tmp_path, {"a": maps(0)})
    _rewrite(tmp_path, **changes)
    with pytest.raises(StoreError, match=message):
        LabelStore.open(tmp_path).read("a")


def test_a_row_group_of_several_rows_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, {"a": maps(0), "b": maps(1)})
    _rewrite(tmp_path, row_group_size=2)
    with pytest.raises(StoreError, match="holds 2 rows"):
        LabelStore.open(tmp_path).read("a")
