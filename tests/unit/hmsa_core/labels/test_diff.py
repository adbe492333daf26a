from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStoreWriter
from hmsa_core.labels.diff import diff_stores, write_pictures
from hmsa_core.labels.exporting import Selection
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes, plain
from tests.support.label_maps import maps, opened, stored, toy_classes


def _store(path: Path, labels: dict[str, np.ndarray], p: float = 0.95) -> Selection:
    given = {name: (label, np.full(label.shape, p, np.float32)) for name, label in labels.items()}
    return Selection(stored(path, given, {"teacher": path.name}))


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Selection, Selection]:
    one = {f"n{i}": maps(i)[0] for i in range(4)}
    other = {name: label.copy() for name, label in one.items()}
    other["n1"][:3] = 7
    other["n2"][:9] = 255
    other["n4"] = maps(4)[0]
    del other["n3"]
    return _store(tmp_path / "a", one), _store(tmp_path / "b", other)


def test_changes_are_counted_per_class_pair_and_image(stores: tuple[Selection, Selection]) -> None:
    a, b = stores
    diff = diff_stores(a, b)
    expected = np.zeros((20, 20), int)
    for name in ("n0", "n1", "n2"):
        one, other = (np.minimum(s.read(name)[0], 19) for s in (a, b))
        np.add.at(expected, (one, other), 1)
    assert np.array_equal(diff.pixels, expected)
    assert [name for name, _, _ in diff.images] == ["n2", "n1", "n0"]
    assert (diff.only_a, diff.only_b) == (["n3"], ["n4"])
    value = diff.to_json(2)
    assert len(value["most_changed"]) == 2
    assert value["changed"] == expected.sum() - np.trace(expected)
    lost = next(row for row in value["classes"] if row["name"] == "ignore")
    assert lost["gained"] == np.count_nonzero(b.read("n2")[0] == 255)


def test_a_store_does_not_differ_from_itself(stores: tuple[Selection, Selection], tmp_path: Path) -> None:
    diff = diff_stores(stores[0], stores[0])
    assert diff.to_json()["changed"] == 0
    assert write_pictures(diff, *stores, tmp_path / "none") == []


def test_thresholds_count_in_the_comparison(tmp_path: Path) -> None:
    label = maps(0)[0]
    sure, unsure = _store(tmp_path / "a", {"n": label}, 0.95), _store(tmp_path / "b", {"n": label}, 0.85)
    assert diff_stores(sure, unsure).to_json()["changed"] == 0
    policy = from_threshold(0.9, cityscapes())
    at = diff_stores(Selection(sure.store, policy), Selection(unsure.store, policy)).to_json()
    assert at["changed_share"] == 1
    assert all(move["b"] == "ignore" for move in at["moves"])


def test_pictures_show_a_b_and_what_changed(stores: tuple[Selection, Selection], tmp_path: Path) -> None:
    a, b = stores
    paths = write_pictures(diff_stores(a, b), a, b, tmp_path / "p", limit=5)
    assert [p.name for p in paths] == ["001-n2.png", "002-n1.png"]  # n0 did not change
    picture = np.asarray(Image.open(paths[1]))
    height, width = a.read("n1")[0].shape
    assert picture.shape == (height, 3 * width + 8, 3)
    palette = cityscapes().palette()
    assert np.array_equal(picture[:, :width], palette[a.read("n1")[0]])
    assert np.array_equal(picture[:, width + 4 : 2 * width + 4], palette[b.read("n1")[0]])
    changed = a.read("n1")[0] != b.read("n1")[0]
    assert (picture[:, 2 * width + 8 :][~changed] == 64).all()


def test_stores_of_other_tables_are_compared_if_the_names_of_the_classes_are_equal(tmp_path: Path) -> None:
    """An exported network knows names alone."""
    label = maps(0)[0]
    a = _store(tmp_path / "a", {"n": label})
    named = Selection(stored(tmp_path / "b", {"n": label}, classes=plain(cityscapes().classes)))
    assert [row[:2] for row in diff_stores(a, named).images] == [("n", 0)]


def test_resized_images_are_reported_and_other_classes_refused(tmp_path: Path) -> None:
    a = _store(tmp_path / "a", {"n": maps(0)[0]})
    b = _store(tmp_path / "b", {"n": maps(0, (10, 10))[0]})
    diff = diff_stores(a, b)
    assert (diff.resized, diff.images) == (["n"], [])
    with pytest.raises(ConfigError, match="nothing to compare"):
        diff_stores(a, Selection(stored(tmp_path / "c", {"n": np.zeros((2, 2), np.uint8)}, classes=toy_classes())))


def test_other_pictures_of_the_same_name_are_reported_and_not_compared(tmp_path: Path) -> None:
    """What both stores labelled tells pictures apart; a store that does not say what it labelled is compared by name."""
    pictures = {"a": ("1", "2", "", "", "5"), "b": ("9", "2", "3", "", "8")}
    for folder, digests in pictures.items():
        with LabelStoreWriter(tmp_path / folder, {}) as writer:
            for i, digest in enumerate(digests):
                label = maps(i, (10, 10) if (folder, i) == ("b", 4) else (12, 12))[0]
                writer.add(f"n{i}", label, np.ones(label.shape, np.float32), image_sha256=digest * 64)
    steps: list[int] = []
    diff = diff_stores(Selection(opened(tmp_path / "a")), Selection(opened(tmp_path / "b")), advance=steps.append)
    assert (diff.other_pictures, diff.resized) == (["n0", "n4"], [])
    assert sorted(name for name, _, _ in diff.images) == ["n1", "n2", "n3"]
    assert diff.pixels.sum() == 3 * 12 * 12
    assert diff.to_json()["other_pictures"] == ["n0", "n4"]
    assert sum(steps) == 5
