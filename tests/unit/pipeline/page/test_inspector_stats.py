"""Thresholds as people write them, intervals, colours; figures from the sidecar equal what counting pixels gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels import ConfidenceCode, LabelStore, ThresholdPolicy
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.labels.thresholds.intervals import Stratum, clopper_pearson, stratified
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from pipeline.review.pictures import safe_colours
from pipeline.review.precision import PrecisionSources, find_curves
from pipeline.review.spot_check import Judged
from pipeline.review.stats import ImageQuery, image_rows, parse_sort, parse_thresholds, store_stats, to_policy
from pipeline.review.view import StoreView
from tests.support.label_scenes import Scenes

EDGES = ConfidenceCode().edges


def test_pins_win_over_the_common_threshold() -> None:
    thresholds = parse_thresholds(cityscapes(), "0.9", ["rider:0.5", "traffic light:withheld"])
    assert thresholds.codes[cityscapes().index("rider")] == 50
    assert thresholds.codes[cityscapes().index("traffic light")] == 256
    assert thresholds.codes[0] == 90
    assert (thresholds.statuses[12], thresholds.statuses[6], thresholds.statuses[0]) == (
        "yours",
        "withheld",
        "one for all",
    )
    assert thresholds.text(6) == "withheld"


@pytest.mark.parametrize(
    "text", ["", "abc", "nan", "inf", "0,9", "policy", "<script>", "0.9+rider", "0.9+nobody:0.9", "0.9+rider:0.12345"]
)
def test_a_threshold_or_a_pin_that_means_nothing_is_refused(text: str) -> None:
    threshold, *pins = text.split("+")
    with pytest.raises((ConfigError, InputError)):
        parse_thresholds(cityscapes(), threshold, pins)


@given(
    st.sampled_from(EDGES),
    st.dictionaries(st.sampled_from(cityscapes().classes), st.sampled_from([*EDGES, "withheld"]), max_size=19),
)
def test_a_saved_policy_keeps_exactly_what_the_cuts_keep(tmp_path_factory, edge: str, pins: dict[str, str]) -> None:
    classes = cityscapes()
    thresholds = parse_thresholds(classes, edge, [f"{name}:{value}" for name, value in pins.items()])
    path = tmp_path_factory.getbasetemp() / "saved.json"
    to_policy(thresholds, classes, None).save(path)
    loaded = ThresholdPolicy.load(path)
    rng = np.random.default_rng(1)
    label, code = rng.integers(0, 19, (32, 32)).astype(np.uint8), rng.integers(0, 256, (32, 32)).astype(np.uint8)
    expected = np.where(code >= thresholds.codes[label], label, 255)
    assert np.array_equal(loaded.apply(label, code), expected)


def test_saving_on_top_of_a_measured_policy_keeps_its_evidence_where_nothing_changed(tmp_path: Path) -> None:
    classes = cityscapes()
    measured = from_threshold("0.9", classes)
    entries = tuple(type(e)(e.name, e.code, "measured", {"blocks": 30}) for e in measured.entries)
    measured = ThresholdPolicy(classes, entries, table=np.full((19, 256), 0.9), binding={"teacher": "x"})
    thresholds = parse_thresholds(classes, "policy", ["rider:0.97"], {"policy": measured})
    saved = to_policy(thresholds, classes, measured)
    assert saved.entries[0].status == "measured"
    assert saved.entries[0].evidence == {"blocks": 30}
    rider = saved.entries[12]
    assert (rider.status, rider.threshold) == ("given", "0.97")
    assert rider.evidence["was"] == {"code": 90, "threshold": "0.90", "status": "measured"}
    assert saved.binding == {"teacher": "x"}
    assert saved.table is not None


@pytest.mark.parametrize(
    ("right", "n", "ends"),
    # Values of R's binom.test (published tables of Clopper and Pearson agree to the digits shown).
    [
        (7, 10, (0.3475, 0.9333)),
        (0, 10, (0, 0.3085)),
        (10, 10, (0.6915, 1)),
        (1, 2, (0.0126, 0.9874)),
        (95, 100, (0.8872, 0.9836)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_the_exact_interval_matches_published_values(right: int, n: int, ends: tuple[float, float]) -> None:
    assert clopper_pearson(right, n) == pytest.approx(ends, abs=5e-5)
    assert n or stratified([Stratum(0, 0, 10.0)]) is None, "no answers say nothing"


@given(st.integers(0, 40), st.integers(1, 40))
def test_one_stratum_is_the_plain_interval(right: int, n: int) -> None:
    right = min(right, n)
    expected = (right / n, *clopper_pearson(right, n))
    assert stratified([Stratum(right, n, 123.0)]) == pytest.approx(expected, abs=0.02)


def test_strata_weigh_by_their_size_and_a_perfect_sample_of_unequal_ones_claims_less_than_of_equal_ones() -> None:
    assert stratified([Stratum(20, 20, 99.0), Stratum(0, 20, 1.0)])[0] == pytest.approx(0.99)
    lows = [stratified([Stratum(20, 20, 1.0), Stratum(20, 20, weight)])[1] for weight in (1.0, 50.0)]
    assert lows[1] < lows[0]


def test_the_stratified_interval_covers_the_truth_in_at_least_95_per_cent_of_audits() -> None:
    rng = np.random.default_rng(3)
    weights, precisions, n = [60.0, 30.0, 10.0], [0.97, 0.85, 0.6], 15
    truth = float(np.average(precisions, weights=weights))
    hits = 0
    for _ in range(400):
        strata = [Stratum(int(rng.binomial(n, p)), n, w) for p, w in zip(precisions, weights, strict=True)]
        _, low, high = stratified(strata)
        hits += low <= truth <= high
    assert hits / 400 >= 0.93


# Of usual sight and of sight without one of the three kinds of cones (Machado, Oliveira and Fernandes 2009).
VISION = [
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
]
TO_LMS = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.2119035, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.6299787],
]
TO_LAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.9779985, -2.42859221, 0.45059371],
    [0.0259040, 0.78277177, -0.80867577],
]


def nearest(colours: object) -> float:
    """Smallest distance in OKLab between two of these colours, for the kind of vision that sees it as smallest."""
    srgb = np.array(colours) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("vij,nj->vni", VISION, linear), 0, 1)
    lab = np.cbrt(seen @ np.transpose(TO_LMS)) @ np.transpose(TO_LAB)
    apart = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1).min(axis=0)
    return float(apart[~np.eye(len(apart), dtype=bool)].min())


def test_every_class_gets_a_safe_colour_of_its_own_farther_from_the_others_than_the_data_sets_own() -> None:
    for count in (1, 11, 19, 65, 108, 123, 200):
        colours = safe_colours(count)
        assert len(set(colours)) == count
        assert all(0 <= value <= 255 for colour in colours for value in colour)
    assert safe_colours(30)[:19] == safe_colours(19), "more classes keep the colours of fewer"
    assert nearest(safe_colours(19)) > 3 * nearest(cityscapes().colours)


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
    thresholds = parse_thresholds(view.classes, "0.9", CUTS)
    stats = store_stats(view, thresholds, PrecisionSources(view.totals))
    assert stats["kept"] == sum(kept_by_hand(maps, thresholds.codes).values())
    assert stats["pixels"] == sum(label.size for label, _ in maps.values())
    for row in stats["classes"]:
        assert row["kept"] == sum(kept_by_hand(maps, thresholds.codes, row["id"]).values())
        assert row["predicted"] == sum(int((label == row["id"]).sum()) for label, _ in maps.values())
    assert stats["classes"][15]["threshold"] == "withheld"
    assert stats["classes"][15]["kept"] == 0


@pytest.mark.parametrize("class_name", [None, "rider", "road"])
def test_images_come_sorted_by_what_they_keep(view: StoreView, maps, class_name: str | None) -> None:
    c = None if class_name is None else view.classes.index(class_name)
    thresholds = parse_thresholds(view.classes, "0.95")
    total, rows = image_rows(view, thresholds, ImageQuery(parse_sort("coverage"), c))
    kept = kept_by_hand(maps, thresholds.codes, c)
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
    _, rows = image_rows(view, parse_thresholds(view.classes, "0.9"), ImageQuery(parse_sort("drop:0.5:0.95"), c))
    low, high = (
        kept_by_hand(maps, np.full(19, parse_thresholds(view.classes, t).codes[0]), c) for t in ("0.5", "0.95")
    )
    assert [row["drop"] for row in rows] == sorted((low[r["name"]] - high[r["name"]] for r in rows), reverse=True)


def test_conflict_counts_kept_pixels_that_contradict_the_coarse_label(view: StoreView, maps, scenes: Scenes) -> None:
    thresholds = parse_thresholds(view.classes, "0.8")
    _, rows = image_rows(view, thresholds, ImageQuery(parse_sort("conflict")))
    assert sum(row["conflict"] for row in rows) > 0
    for row in rows:
        human = view.pictures.human(row["name"])
        label, code = maps[row["name"]]
        conflict = (human != 255) & (human != label) & (code >= thresholds.codes[label])
        assert row["conflict"] == int(conflict.sum())
    shares = [row["conflict"] / row["pixels"] for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_doubt_is_close_to_one_minus_the_mean_confidence(view: StoreView, maps) -> None:
    edges = np.array([float(edge) for edge in view.manifest["edges"]])
    _, rows = image_rows(view, parse_thresholds(view.classes, "0.9"), ImageQuery(parse_sort("uncertain")))
    for row in rows:
        assert row["uncertain"] == pytest.approx(float(1 - edges[maps[row["name"]][1]].mean()), abs=0.03)
    assert [r["uncertain"] for r in rows] == sorted((r["uncertain"] for r in rows), reverse=True)


def test_filters_and_pages(view: StoreView) -> None:
    thresholds = parse_thresholds(view.classes, "0.9")
    total, rows = image_rows(view, thresholds, ImageQuery(city="bremen"), limit=2)
    assert total == 3
    assert [row["city"] for row in rows] == ["bremen", "bremen"]
    assert [r["name"] for r in image_rows(view, thresholds, ImageQuery(text="AACHEN"))[1]] == view.names[:3]
    flagged = image_rows(view, thresholds, ImageQuery(review="flag"), statuses={view.names[4]: "flag"})[1]
    assert [row["name"] for row in flagged] == [view.names[4]]
    assert image_rows(view, thresholds, ImageQuery(review="none"), statuses={view.names[4]: "flag"})[0] == 5
    assert image_rows(view, thresholds, ImageQuery(), offset=5)[1][0]["name"] == view.names[5]


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
    answers = [Judged(rider, 80, 120, right=i > 0) for i in range(10)]
    sources = PrecisionSources(view.totals, policy, answers=answers)
    audited = sources.of_classes(codes)[rider]
    assert audited is not None
    assert (audited.source, audited.value) == ("audit", 0.9)
    assert audited.low < 0.9 < audited.high


def test_the_precision_of_all_is_that_of_the_rows_above_it(view: StoreView, scenes: Scenes) -> None:
    policy = ThresholdPolicy.load(scenes.policy)
    thresholds = parse_thresholds(view.classes, "0.5")
    road = view.classes.index("road")
    answers = [Judged(road, 0, 200, right) for right in [True] * 3 + [False] * 7]
    several = PrecisionSources(view.totals, policy, answers=answers)
    for sources, source in ((PrecisionSources(view.totals, policy), "expected"), (several, "by class")):
        stats = store_stats(view, thresholds, sources)
        rows = [row for row in stats["classes"] if row["kept"]]
        mean = sum(row["precision"] * row["kept"] for row in rows) / stats["kept"]
        assert stats["precision"] == pytest.approx(mean, abs=1e-5)
        assert stats["precision_source"] == source
    assert stats["precision"] < stats["expected_precision"] - 0.01, "what was judged on this store counts"


def test_an_audit_speaks_for_higher_cuts_but_never_for_lower_ones(view: StoreView) -> None:
    rider = view.classes.index("rider")
    answers = [Judged(rider, 100, code, right=code >= 150) for code in range(100, 200, 5)]
    sources = PrecisionSources(view.totals, answers=answers)
    at = lambda code: sources.of_classes(np.full(19, code))[rider]  # noqa: E731
    assert at(99) is None
    assert at(100).value == 0.5
    assert at(150).value == 1.0


def test_a_policy_measured_outside_of_coarse_labels_is_shown_with_the_precision_there(
    scenes: Scenes, view: StoreView, maps, tmp_path
) -> None:
    """The teacher is right where people drew and wrong elsewhere: pixels that it fills are the ones it answers for."""
    road = view.classes.index("road")

    def images(outside: bool):
        for name, (label, code) in maps.items():
            drawn = np.arange(label.size).reshape(label.shape) % 4 != 0
            truth = np.where(drawn, label, (label + 1) % view.classes.num_classes).astype(np.uint8)
            yield CalibrationImage(name, name, label, code, truth, None, ~drawn if outside else None)

    policy = tmp_path / "policy.json"
    Curves.measure(images(False), view.classes, lineage=view.lineage).save(tmp_path / "curves.json")
    codes = parse_thresholds(view.classes, "0.9").codes

    def shown():
        return PrecisionSources(view.totals, None, find_curves(view, policy)).of_classes(codes)[road]

    assert (shown().source, shown().value) == ("calibration", pytest.approx(0.75, abs=0.02))
    Curves.measure(images(True), view.classes, lineage=view.lineage).save(tmp_path / "curves-judged.json")
    assert (shown().source, shown().value) == ("outside-coarse", 0.0)
