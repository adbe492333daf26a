"""Figures from the sidecar equal what counting pixels gives."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore, ThresholdPolicy
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.taxonomy import cityscapes
from pipeline.inspector.precision import AuditAnswer, PrecisionSources, find_curves
from pipeline.inspector.stats import ImageQuery, image_rows, parse_cuts, parse_sort, store_stats
from pipeline.inspector.view import StoreView
from tests.support.label_scenes import Scenes

CUTS = ["rider:0.6", "bus:withheld"]


@pytest.fixture(scope="module")
def view(scenes: Scenes) -> StoreView:
    return StoreView(scenes.store, images=scenes.images)


@pytest.fixture(scope="module")
def maps(scenes: Scenes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    store = LabelStore.open(scenes.store)
    return {name: store.read(name) for name in store.names()}


def kept_by_hand(maps, codes, class_id=None) -> dict[str, int]:
    need = np.concatenate([codes, np.full(256 - len(codes), 256)])
    return {
        name: int(((code >= need[label]) & (True if class_id is None else label == class_id)).sum())
        for name, (label, code) in maps.items()
    }


def test_totals_and_classes_are_what_counting_gives(view: StoreView, maps) -> None:
    cuts = parse_cuts(view.classes, "0.9", CUTS)
    stats = store_stats(view, cuts, PrecisionSources(view.totals))
    assert stats["kept"] == sum(kept_by_hand(maps, cuts.codes).values())
    assert stats["pixels"] == sum(label.size for label, _ in maps.values())
    for row in stats["classes"]:
        assert row["kept"] == sum(kept_by_hand(maps, cuts.codes, row["id"]).values())
        assert row["predicted"] == sum(int((label == row["id"]).sum()) for label, _ in maps.values())
    assert stats["classes"][15]["threshold"] == "withheld"
    assert stats["classes"][15]["kept"] == 0


@pytest.mark.parametrize("class_name", [None, "rider", "road"])
def test_images_come_sorted_by_what_they_keep(view: StoreView, maps, class_name: str | None) -> None:
    c = None if class_name is None else view.classes.index(class_name)
    cuts = parse_cuts(view.classes, "0.95")
    total, rows = image_rows(view, cuts, ImageQuery(parse_sort("coverage"), c))
    kept = kept_by_hand(maps, cuts.codes, c)
    shares = []
    for row in rows:
        label = maps[row["name"]][0]
        pixels = label.size if c is None else int((label == c).sum())
        assert (row["kept"], row["pixels"]) == (kept[row["name"]], pixels)
        shares.append(row["kept"] / pixels)
    assert shares == sorted(shares)
    assert total == len(rows) == sum(c is None or bool((label == c).any()) for label, _ in maps.values())


def test_the_biggest_loss_between_two_thresholds_comes_first(view: StoreView, maps) -> None:
    c = view.classes.index("person")
    _, rows = image_rows(view, parse_cuts(view.classes, "0.9"), ImageQuery(parse_sort("drop:0.5:0.95"), c))
    low, high = (kept_by_hand(maps, np.full(19, parse_cuts(view.classes, t).codes[0]), c) for t in ("0.5", "0.95"))
    assert [row["drop"] for row in rows] == sorted((low[r["name"]] - high[r["name"]] for r in rows), reverse=True)


def test_conflict_counts_kept_pixels_that_contradict_the_coarse_label(view: StoreView, maps, scenes: Scenes) -> None:
    cuts = parse_cuts(view.classes, "0.8")
    _, rows = image_rows(view, cuts, ImageQuery(parse_sort("conflict")))
    assert sum(row["conflict"] for row in rows) > 0
    for row in rows:
        human = view.pictures.human(row["name"])
        label, code = maps[row["name"]]
        conflict = (human != 255) & (human != label) & (code >= cuts.codes[label])
        assert row["conflict"] == int(conflict.sum())
    shares = [row["conflict"] / row["pixels"] for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_doubt_is_close_to_one_minus_the_mean_confidence(view: StoreView, maps) -> None:
    edges = np.array([float(edge) for edge in view.manifest["edges"]])
    _, rows = image_rows(view, parse_cuts(view.classes, "0.9"), ImageQuery(parse_sort("uncertain")))
    for row in rows:
        assert row["uncertain"] == pytest.approx(float(1 - edges[maps[row["name"]][1]].mean()), abs=0.03)
    assert [r["uncertain"] for r in rows] == sorted((r["uncertain"] for r in rows), reverse=True)


def test_filters_and_pages(view: StoreView) -> None:
    cuts = parse_cuts(view.classes, "0.9")
    total, rows = image_rows(view, cuts, ImageQuery(city="bremen"), limit=2)
    assert total == 3
    assert [row["city"] for row in rows] == ["bremen", "bremen"]
    assert [r["name"] for r in image_rows(view, cuts, ImageQuery(text="AACHEN"))[1]] == view.names[:3]
    flagged = image_rows(view, cuts, ImageQuery(review="flag"), statuses={view.names[4]: "flag"})[1]
    assert [row["name"] for row in flagged] == [view.names[4]]
    assert image_rows(view, cuts, ImageQuery(review="none"), statuses={view.names[4]: "flag"})[0] == 5
    assert image_rows(view, cuts, ImageQuery(), offset=5)[1][0]["name"] == view.names[5]


@pytest.mark.parametrize("text", ["size", "drop", "drop:0.9", "drop:0.95:0.8", "drop:0.80001:0.9", "coverage:0.9"])
def test_an_order_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_sort(text)


def test_precision_names_the_best_source_there_is(view: StoreView, scenes: Scenes) -> None:
    policy = ThresholdPolicy.load(scenes.policy)
    rider = view.classes.index("rider")
    codes = np.full(19, 90)
    assert PrecisionSources(view.totals).of_classes(codes)[rider] is None
    expected = PrecisionSources(view.totals, policy).of_classes(codes)[rider]
    assert expected is not None
    assert expected.source == "expected"
    by_hand = np.average(policy.table[rider, 90:], weights=view.totals[rider, 90:])
    assert expected.value == pytest.approx(float(by_hand))
    answers = [AuditAnswer(rider, 120, right=i > 0) for i in range(10)]
    sources = PrecisionSources(view.totals, policy, answers=answers, audited=[80] * 19)
    audited = sources.of_classes(codes)[rider]
    assert audited is not None
    assert (audited.source, audited.value) == ("audit", 0.9)
    assert audited.low < 0.9 < audited.high


def test_the_precision_of_all_is_that_of_the_rows_above_it(view: StoreView, scenes: Scenes) -> None:
    policy = ThresholdPolicy.load(scenes.policy)
    cuts = parse_cuts(view.classes, "0.5")
    road = view.classes.index("road")
    answers = [AuditAnswer(road, 200, right) for right in [True] * 3 + [False] * 7]
    several = PrecisionSources(view.totals, policy, answers=answers, audited=[0] * 19)
    for sources, source in ((PrecisionSources(view.totals, policy), "expected"), (several, "by class")):
        stats = store_stats(view, cuts, sources)
        rows = [row for row in stats["classes"] if row["kept"]]
        mean = sum(row["precision"] * row["kept"] for row in rows) / stats["kept"]
        assert stats["precision"] == pytest.approx(mean, abs=1e-5)
        assert stats["precision_source"] == source
    assert stats["precision"] < stats["expected_precision"] - 0.01, "what was judged on this store counts"


def test_an_audit_speaks_for_higher_cuts_but_never_for_lower_ones(view: StoreView) -> None:
    rider = view.classes.index("rider")
    answers = [AuditAnswer(rider, code, right=code >= 150) for code in range(100, 200, 5)]
    sources = PrecisionSources(view.totals, answers=answers, audited=[100] * 19)
    at = lambda code: sources.of_classes(np.full(19, code))[rider]  # noqa: E731
    assert at(99) is None
    assert at(100).value == 0.5
    assert at(150).value == 1.0


def test_class_names_of_two_stores_must_agree(scenes: Scenes, view: StoreView) -> None:
    assert view.classes == cityscapes()


def test_a_small_map_shows_the_pixels_of_the_large_one(view: StoreView, maps) -> None:
    name = view.names[0]
    small = cv2.imdecode(np.frombuffer(view.mini_png(name), np.uint8), cv2.IMREAD_UNCHANGED)
    label, code = maps[name]
    assert np.array_equal(small[: small.shape[0] // 2], label[1::2, 1::2])
    assert np.array_equal(small[small.shape[0] // 2 :], code[1::2, 1::2])


def test_a_policy_measured_outside_of_coarse_labels_is_shown_with_the_precision_there(
    scenes: Scenes, view: StoreView, maps, tmp_path
) -> None:
    """The teacher is right where people drew and wrong beside: pixels that it fills are the ones it answers for."""
    road = view.classes.index("road")

    def images(outside: bool):
        for name, (label, code) in maps.items():
            drawn = np.arange(label.size).reshape(label.shape) % 4 != 0
            truth = np.where(drawn, label, (label + 1) % view.classes.num_classes).astype(np.uint8)
            yield CalibrationImage(name, name, label, code, truth, None, ~drawn if outside else None)

    policy = tmp_path / "policy.json"
    Curves.measure(images(False), view.classes, lineage=view.lineage).save(tmp_path / "curves.json")
    codes = parse_cuts(view.classes, "0.9").codes

    def shown():
        return PrecisionSources(view.totals, None, find_curves(view, policy, None)).of_classes(codes)[road]

    assert (shown().source, shown().value) == ("calibration", pytest.approx(0.75, abs=0.02))
    Curves.measure(images(True), view.classes, lineage=view.lineage).save(tmp_path / "curves-judged.json")
    assert (shown().source, shown().value) == ("outside-coarse", 0.0)
