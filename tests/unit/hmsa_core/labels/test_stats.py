from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.io.errors import InputError, StoreError
from hmsa_core.labels import ConfidenceCode, LabelStore, StoreStatistics
from hmsa_core.labels.store.sidecar import count, cumulative
from tests.support.label_maps import coarse_of, maps, write_store

CODE = ConfidenceCode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "store"
    write_store(path, 7, per_shard=3)
    return path


def _pixels(store: Path, codes: np.ndarray) -> np.ndarray:
    """Counted from the pixels."""
    opened = LabelStore.open(store)
    rows = []
    for name in opened.names():
        label, code = opened.read(name)
        rows.append([np.count_nonzero((label == c) & (code >= codes[c])) for c in range(19)])
    return np.array(rows)


@given(st.lists(st.integers(0, 256), min_size=19, max_size=19))
@settings(max_examples=10, deadline=None)
def test_kept_pixels_at_any_codes_are_exactly_those_counted_from_pixels(store: Path, codes: list[int]) -> None:
    with_sidecar = StoreStatistics.open(store).kept(np.array(codes))
    assert np.array_equal(with_sidecar, _pixels(store, np.array(codes)))


def test_totals_conflicts_cities_and_sizes_are_those_of_the_pixels(store: Path) -> None:
    statistics = StoreStatistics.open(store)
    totals, conflicts, by_city = np.zeros((19, 256), int), np.zeros((19, 19), int), {}
    for i in range(7):
        label, confidence = maps(i)
        human = coarse_of(label, i) if i % 2 else np.full_like(label, 255)
        code = CODE.encode(confidence)
        np.add.at(totals, (label, code), 1)
        np.add.at(by_city.setdefault(f"city{i % 3}", np.zeros((19, 256), int)), (label, code), 1)
        both = human != 255
        np.add.at(conflicts, (human[both], label[both]), 1)
    assert np.array_equal(statistics.totals(), totals)
    assert np.array_equal(statistics.pairs().sum(axis=2)[:-1], conflicts)
    assert statistics.city_names() == ["city0", "city1", "city2"]
    for city, expected in by_city.items():
        assert np.array_equal(statistics.totals(city), expected)
    assert statistics.pixels.tolist() == [24 * 40] * 7
    assert statistics.cities == [f"city{i % 3}" for i in range(7)]
    assert np.array_equal(statistics.pairs().sum(axis=0), totals)
    assert statistics.totals("nowhere").sum() == 0
    assert cumulative(np.array([[1, 0, 2, 5]])).tolist() == [[8, 7, 7, 5]], "pixels with at least each code"


def test_images_keep_their_order_when_shards_are_appended(tmp_path: Path) -> None:
    write_store(tmp_path, 3)
    write_store(tmp_path, 2, start=3)
    assert np.array_equal(StoreStatistics.open(tmp_path).kept(95), _pixels(tmp_path, np.full(19, 95)))
    assert StoreStatistics.open(tmp_path).names == LabelStore.open(tmp_path).names()


def test_many_blocks_of_images_give_the_same_numbers_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hmsa_core.labels.store import sidecar

    monkeypatch.setattr(sidecar, "_BLOCK", 2)
    monkeypatch.setattr(sidecar, "_SMALL", 1)
    monkeypatch.setattr(sidecar, "_GROUP_ROWS", 5)
    write_store(tmp_path, 7, per_shard=1)
    assert np.array_equal(StoreStatistics.open(tmp_path).kept(80), _pixels(tmp_path, np.full(19, 80)))


def test_a_damaged_table_is_an_error_never_other_numbers(tmp_path: Path) -> None:
    write_store(tmp_path, 2)
    path = next((tmp_path / "sidecar").glob("kept-*"))
    original = path.read_bytes()
    for position in range(0, len(original), len(original) // 50):
        data = bytearray(original)
        data[position] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(StoreError, match="kept-"):
            StoreStatistics.open(tmp_path).kept(90)
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        StoreStatistics.open(tmp_path).kept(90)


def test_codes_must_fit_the_classes(store: Path) -> None:
    statistics = StoreStatistics.open(store)
    for bad in ([0] * 18, np.full(19, 257), np.full(19, -1)):
        with pytest.raises(InputError, match="19 values"):
            statistics.kept(bad)
    assert statistics.kept(256).sum() == 0
    statistics.close()
    assert statistics.kept(0).sum() == statistics.pixels.sum()


@given(st.integers(0, 1000), st.booleans())
def test_sparse_histograms_add_up_to_the_image(seed: int, with_human: bool) -> None:
    rng = np.random.default_rng(seed)
    label, code, human = (rng.choice([0, 3, 7, 255], (9, 11)).astype(np.uint8) for _ in range(3))
    found = count(label, code, human if with_human else None)
    got = dict(zip(zip(found.class_id, found.human, found.code, strict=True), found.pixels, strict=True))
    humans = human if with_human else np.full_like(label, 255)
    assert got == Counter(zip(label.flat, humans.flat, code.flat, strict=True))


def test_sums_that_do_not_fit_the_totals_are_refused(tmp_path: Path) -> None:
    """A number that changed without any checksum noticing still contradicts the table of sums."""
    write_store(tmp_path, 2)
    statistics = StoreStatistics.open(tmp_path)
    statistics.totals()
    statistics._all_totals[3, 200] += 1
    with pytest.raises(StoreError, match="sums"):
        statistics.kept(90)
