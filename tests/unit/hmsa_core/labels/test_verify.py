from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from hmsa_core.io.errors import ConfigError, HmsaError, StoreError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.format import footer_sha256, listed_files
from tests.support.damage import flip
from tests.support.label_maps import write_store

T = TypeVar("T")
SHARD, OTHER = "shard-00001.parquet", "shard-00000.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    write_store(path, 6, per_shard=2)
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def _named(path: Path) -> set[str]:
    return {problem.file for problem in LabelStore.open(path).verify()}


def _or_error(read: Callable[[str], T], name: str) -> T | StoreError:
    try:
        return read(name)
    except StoreError as error:
        return error


def _served(path: Path, whole: Path, damaged: str) -> None:
    """All other shards are served unchanged; the damaged one's images raise or are as they were, never else."""
    store, reference = LabelStore.open(path), LabelStore.open(whole)
    for name in reference.names():
        expected = reference.read(name)
        got = _or_error(store.read, name)
        if isinstance(got, StoreError):
            assert store.shard_of(name) == damaged
            assert damaged in str(got)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def _refused(path: Path) -> None:
    with pytest.raises(HmsaError, match=r"refused|damaged|missing|not one of our files"):
        LabelStore.open(path, strict=True)


def test_a_whole_store_has_no_problem_and_leftovers_of_a_killed_writer_do_not_disturb(whole: Path, store: Path) -> None:
    assert LabelStore.open(whole).verify() == LabelStore.open(whole).problems == []
    (store / ".shard-00009.parquet.999999-0123abcd.tmp").write_bytes(b"half")
    assert LabelStore.open(store, strict=True).verify() == []


def test_200_flipped_bits_and_50_in_the_footer_are_all_named_and_never_read(whole: Path, store: Path) -> None:
    path = store / SHARD
    original = path.read_bytes()
    footer = int.from_bytes(original[-8:-4], "little") + 8
    draw = random.Random(1)
    places = [draw.randrange(len(original) - footer, len(original)) for _ in range(50)]
    places += [draw.randrange(len(original)) for _ in range(200)]
    reference = LabelStore.open(whole)
    names = [n for n in reference.names() if reference.shard_of(n) == SHARD]
    expected = {n: reference.read(n) for n in names}
    for position in places:
        flip(path, position, draw.randrange(8))
        opened = LabelStore.open(store)
        problems = opened.verify()
        assert [p.file for p in problems] == [SHARD]
        assert str(path) in problems[0].message
        for name in names:
            got = _or_error(opened.read, name)
            if isinstance(got, StoreError):
                assert SHARD in str(got)
            else:  # the bit lies in the other image, or in bytes that nobody reads
                assert all(np.array_equal(a, b) for a, b in zip(got, expected[name], strict=True))
        if position % 8 == 0:
            _refused(store)
        opened.close()
        path.write_bytes(original)


def test_a_flipped_bit_in_what_a_shard_says_of_an_image_is_never_served(whole: Path, store: Path) -> None:
    path = store / SHARD
    original = path.read_bytes()
    reference = LabelStore.open(whole)
    expected = {n: reference.row(n) for n in reference.names() if reference.shard_of(n) == SHARD}
    text = [
        column for column in pq.ParquetFile(path).schema_arrow.names if column in ("city", "image_path", "image_sha256")
    ]
    draw, noticed = random.Random(4), 0
    for position in (place for places in _column_chunks(path, text) for place in places):
        flip(path, position, draw.randrange(8))
        opened = LabelStore.open(store)
        for name, row in expected.items():
            got = _or_error(opened.row, name)
            if isinstance(got, StoreError):
                assert SHARD in str(got)
                noticed += 1
            else:
                assert got == row
        opened.close()
        path.write_bytes(original)
    assert noticed > 100, "nearly each of these bits is in what one of the rows says"


def _column_chunks(path: Path, columns: list[str]) -> list[range]:
    """Bytes of a column in each row group: pages with their headers."""
    meta, found = pq.ParquetFile(path).metadata, []
    for group in range(meta.num_row_groups):
        for i in range(meta.num_columns):
            chunk = meta.row_group(group).column(i)
            if chunk.path_in_schema in columns:
                offsets = [o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o]
                found.append(range(min(offsets), min(offsets) + chunk.total_compressed_size))
    return found


@pytest.mark.parametrize("file", ["sidecar", "receipts"])
def test_flipped_bits_in_sidecar_tables_and_receipts_are_named(store: Path, file: str) -> None:
    draw = random.Random(2)
    for path in sorted((store / file).iterdir()):
        original = path.read_bytes()
        for _ in range(6):
            flip(path, draw.randrange(len(original)), draw.randrange(8))
            assert _named(store) == {path.relative_to(store).as_posix()}
            path.write_bytes(original)


def test_every_truncation_is_named_without_reading_the_rest(whole: Path, store: Path) -> None:
    path = store / SHARD
    original = path.read_bytes()
    for i in range(100):
        path.write_bytes(original[: len(original) * i // 100])
        assert _named(store) == {SHARD}
        assert [p.file for p in LabelStore.open(store).problems] == [SHARD]
    _served(store, whole, SHARD)
    _refused(store)


def _zero_fill(root: Path) -> None:
    data = (root / SHARD).read_bytes()
    assert len(data) > 200 + 4096
    (root / SHARD).write_bytes(data[:200] + bytes(4096) + data[200 + 4096 :])


def _swap(root: Path) -> None:
    for source, target in ((SHARD, "x"), (OTHER, SHARD), ("x", OTHER)):
        (root / source).rename(root / target)


def _of_another_teacher(root: Path) -> None:
    write_store(root.parent / "old", 6, per_shard=2, lineage={"teacher": "older"})
    shutil.copy(root.parent / "old" / SHARD, root / SHARD)


def _copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


RECEIPTS = ("receipts/shard-00000.json", "receipts/shard-00001.json")
DAMAGE: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {  # what happens, and what is named
    "zero-filled": (_zero_fill, {SHARD: "changed"}),
    "deleted": (lambda root: (root / SHARD).unlink(), {SHARD: "missing"}),
    "swapped": (_swap, {SHARD: "swapped", OTHER: "swapped"}),
    "renamed": (
        lambda root: (root / SHARD).rename(root / "renamed.parquet"),
        {SHARD: "renamed", "renamed.parquet": "unlisted"},
    ),
    "duplicated": (_copy(SHARD, "copy.parquet"), {"copy.parquet": "unlisted"}),
    "overwritten": (_copy(OTHER, SHARD), {SHARD: "swapped"}),
    "of another teacher": (_of_another_teacher, {SHARD: "changed"}),
    "statistics deleted": (
        lambda root: next((root / "sidecar").glob("totals-*")).unlink(),
        {"sidecar/totals.parquet": "missing"},
    ),
    "receipt overwritten": (_copy(*RECEIPTS), {RECEIPTS[1]: "swapped"}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_moved_and_foreign_files_are_named_with_what_happened_and_refused_in_training(
    whole: Path, store: Path, kind: str
) -> None:
    damage, expected = DAMAGE[kind]
    damage(store)
    opened = LabelStore.open(store)
    found = opened.verify()
    assert {re.sub(r"-[0-9a-f]{16}", "", problem.file): problem.kind for problem in found} == expected
    assert [str(problem) for problem in found] == [problem.message for problem in found]
    _refused(store)
    if len(expected) == 1:
        _served(store, whole, found[0].file)
    if kind == "deleted":
        assert [problem.file for problem in opened.problems] == [SHARD], "known as soon as it is opened"
        assert [opened.is_served(name) for name in opened.names()] == [True] * 2 + [False] * 2 + [True] * 2


@pytest.mark.parametrize("of", [1, 3, 7, 50])
def test_slices_together_check_every_file_once(store: Path, of: int) -> None:
    for relative in listed_files(LabelStore.open(store).manifest):
        if relative != "manifest.json":
            flip(store / relative, 10, 0)
    opened = LabelStore.open(store)
    found = [p.file for n in range(1, of + 1) for p in opened.verify(f"{n}/{of}")]
    assert sorted(found) == sorted(set(listed_files(opened.manifest)) - {"manifest.json"})


@pytest.mark.parametrize("bad", ["0/3", "4/3", "x", "1", "1/0", "-1/2"])
def test_a_slice_that_is_none_is_refused(whole: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match="n/t"):
        LabelStore.open(whole).verify(bad)


def test_a_footer_that_is_none_is_a_torn_file(tmp_path: Path) -> None:
    for data in (b"", b"PAR1", b"x" * 100, b"y" * 20 + (10**6).to_bytes(4, "little") + b"PAR1"):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(StoreError, match="torn"):
            footer_sha256(tmp_path / "f")
