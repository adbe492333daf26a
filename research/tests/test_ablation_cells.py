"""Cells on disk: exact figures from small files, damage that is noticed, variants that are remembered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io.errors import IntegrityError
from hmsa_core.metrics import bootstrap_difference, iou_of
from research.ablation.cells import Cell, Counts, cell_path, cells_by_key, changes, write_cell
from research.tests.ablations import confusions, counts_of, put_cell, record_of


def test_the_committed_counts_give_the_iou_and_the_intervals_of_the_whole_confusions() -> None:
    full = [confusions(0.8, seed=1), confusions(0.6, seed=2)]
    small = [counts_of(0.8, seed=1), counts_of(0.6, seed=2)]
    for whole, counts in zip(full, small, strict=True):
        np.testing.assert_array_equal(iou_of(counts.confusions().sum(0)), iou_of(whole.sum(0)))
    blocks = small[0].blocks
    exact = bootstrap_difference(full[0], full[1], blocks, draws=300)
    again = bootstrap_difference(small[0].confusions(), small[1].confusions(), blocks, draws=300)
    assert again.to_json("abc") == exact.to_json("abc")


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_any_counts_come_back_as_they_were_written(images: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    full = rng.integers(0, 2**20, (images, classes, classes))
    names = tuple(f"straße_{i}" for i in range(images))
    counts = Counts(names, names, np.diagonal(full, axis1=1, axis2=2).copy(), full.sum(2), full.sum(1))
    data = counts.to_bytes()
    again = Counts.load(_file(data))
    assert again.names == names
    assert again.boundary is None
    np.testing.assert_array_equal(again.predicted, full.sum(1))
    np.testing.assert_array_equal(iou_of(again.confusions()), iou_of(full))
    assert again.to_bytes() == data


def _file(data: bytes):
    import io

    return io.BytesIO(data)


def test_boundary_counts_are_kept_and_are_asked_for_by_name() -> None:
    counts = Counts.load(_file(counts_of(0.7).to_bytes()))
    at = counts.confusions(at_boundaries=True)
    np.testing.assert_allclose(iou_of(at.sum(0)), counts.boundary[:, 0].sum(0) / counts.boundary[:, 1].sum(0))
    bare = Counts(counts.names, counts.blocks, counts.hits, counts.truth, counts.predicted)
    with pytest.raises(IntegrityError, match="no counts at boundaries"):
        bare.confusions(at_boundaries=True)


def test_204_images_of_19_classes_take_less_than_100_kilobytes() -> None:
    rng = np.random.default_rng(3)
    shape = (204, 19)
    truth = rng.integers(0, 32768 // 19, shape) * (rng.random(shape) < 0.7)
    hits = (truth * rng.random(shape)).astype(np.int64)
    names = tuple(f"bielefeld_{i:06d}_000019" for i in range(204))
    boundary = np.stack([hits // 8, truth // 4], axis=1)
    counts = Counts(names, tuple(f"bielefeld run {i // 3}" for i in range(204)), hits, truth, truth, boundary)
    assert len(counts.to_bytes()) < 100_000


def test_the_classes_of_the_counts_are_named_though_the_record_sorts_them(tmp_path: Path) -> None:
    put_cell(tmp_path, "good", 0, 0.8)
    cell = Cell.load(cell_path(tmp_path, "good", 0))
    assert list(cell.record["iou"]) == ["car", "pole", "road"]
    assert cell.class_names(cell.counts()) == ("road", "car", "pole")


def test_classes_that_cannot_be_told_apart_are_not_named(tmp_path: Path) -> None:
    put_cell(tmp_path, "good", 0, 0.8, iou={"road": 0.5, "car": 0.5, "pole": None})
    cell = Cell.load(cell_path(tmp_path, "good", 0))
    assert cell.class_names(cell.counts()) == ()


def test_a_count_file_that_is_not_the_named_one_is_refused(tmp_path: Path) -> None:
    put_cell(tmp_path, "average", 0, 0.7)
    cell = Cell.load(tmp_path / "average-seed0.json")
    assert cell.counts().names == counts_of(0.7).names
    (tmp_path / "average-seed0.npz").write_bytes(counts_of(0.9).to_bytes())
    with pytest.raises(IntegrityError, match=r"average-seed0\.npz: missing, or not the file"):
        cell.counts()


def test_a_file_of_another_kind_is_no_cell(tmp_path: Path) -> None:
    (tmp_path / "x-seed0.json").write_text('{"format": "other"}')
    with pytest.raises(IntegrityError, match="not a cell of version 1"):
        Cell.load(tmp_path / "x-seed0.json")


def test_a_replaced_variant_is_written_down_and_the_same_one_is_not(tmp_path: Path) -> None:
    put_cell(tmp_path, "both", 0, 0.5, mean_iou=0.41)
    put_cell(tmp_path, "both", 0, 0.5, mean_iou=0.41)
    assert not (tmp_path / "tried.jsonl").exists()
    put_cell(tmp_path, "both", 0, 0.6, settings_digest="t", mean_iou=0.45)
    put_cell(tmp_path, "both", 0, 0.7, settings_digest="u", mean_iou=0.47)
    lines = [json.loads(line) for line in (tmp_path / "tried.jsonl").read_text().splitlines()]
    assert [(line["row"], line["mean_iou"]) for line in lines] == [("both", 0.41), ("both", 0.45)]


def test_a_kill_between_the_two_files_leaves_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hmsa_core.io import atomic

    put_cell(tmp_path, "both", 0, 0.5)

    def die(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        write_cell(tmp_path, record_of("both", 0, settings_digest="t"), counts_of(0.9).to_bytes())
    assert not (tmp_path / "both-seed0.json").exists()


def test_a_cell_of_another_table_with_the_same_key_is_found(tmp_path: Path) -> None:
    put_cell(tmp_path / "scales", "hierarchical", 1, 0.7)
    (tmp_path / "labels").mkdir()
    known = cells_by_key(tmp_path)
    assert list(known) == ["hierarchical1"]
    assert (known["hierarchical1"].row, known["hierarchical1"].seed) == ("hierarchical", 1)


def test_changes_name_the_key_and_tell_added_from_changed() -> None:
    old = {"training": {"lr": 0.1, "epochs": 5}, "data": None}
    assert changes(old, {"training": {"lr": 0.2, "epochs": 5, "ema": 0.0}, "data": None}) == [
        "+training.ema",
        "training.lr",
    ]
    assert changes(old, {"training": {"lr": 0.1}, "data": None}) == ["-training.epochs"]
    assert changes(old, old) == []
