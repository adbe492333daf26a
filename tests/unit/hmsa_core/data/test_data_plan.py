from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core import taxonomy
from hmsa_core.config import PseudoConfig, SamplingConfig
from hmsa_core.data.index import Sample
from hmsa_core.data.plan import EpochPlan
from hmsa_core.data.sampling import Centroids, allot, cycle_capped, find_centroids, permutation, raw
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.training.data import Timeline
from tests.support.training import sample

ints = st.integers
REFERENCE = Path(__file__).resolve().parents[3] / "reference"
MAPS = np.load(REFERENCE / "data_sampling_labels.npz")["label_ids"]
GOLDEN = json.loads((REFERENCE / "data_sampling.json").read_text())


def images(count: int, prefix: str = "fine") -> list[Sample]:
    return [sample(f"{prefix}-{i:04d}") for i in range(count)]


def scattered(samples: list[Sample], classes: int, seed: int, density: float = 0.4) -> Centroids:
    """Random centroids: most images show some classes, some more than once."""
    rng = np.random.default_rng(seed)
    parts = []
    for one in samples:
        rows = [
            (c, int(rng.integers(0, 100)), int(rng.integers(0, 100)), 5)
            for c in range(classes)
            for _ in range(int(rng.integers(1, 4)) if rng.random() < density else 0)
        ]
        parts.append((one.name, np.array(rows, np.int32).reshape(-1, 4)))
    return Centroids.collect(parts)


def make_plan(fine: int = 117, pseudo: int = 0, classes: int = 7, **options) -> EpochPlan:
    samples, extra = images(fine), images(pseudo, "pseudo")
    centroids = options.pop("centroids", None)
    centroids = scattered(samples, classes, 1) if centroids is None else centroids
    more = {"pseudo": extra, "pseudo_centroids": scattered(extra, classes, 2)} if pseudo else {}
    return plan_of(samples, centroids, classes, **{"seed": 5, "epochs": 3, **more, **options})


def plan_of(samples: list[Sample], centroids: Centroids, classes: int, **options) -> EpochPlan:
    return EpochPlan(samples, centroids, num_classes=classes, **{"seed": 1, "epochs": 1, **options})


def key(crop) -> tuple:
    return (crop.sample.name, crop.source, crop.class_id, crop.x, crop.y, crop.seed)


@pytest.mark.parametrize("share", ["0.25", "0.5", "1.0"])
def test_released_epochs_have_the_released_counts(share):
    golden = GOLDEN["epoch"][share]
    samples = images(len(MAPS))
    lut = taxonomy.cityscapes().id_to_train
    centroids = Centroids.collect((s.name, find_centroids(lut[m], 19, 128)) for s, m in zip(samples, MAPS, strict=True))
    released = SamplingConfig(class_uniform=float(share), empty_classes="released")
    plan = plan_of(samples, centroids, 19, seed=5, epochs=2, epoch_samples=golden["items_in"], sampling=released)
    crops = plan.crops(0)
    assert len(crops) == golden["items_out"]
    per_class = Counter(c.class_id for c in crops)
    assert per_class.pop(-1) == golden["random_items"] == plan.report(0)["random"]["fine"]
    assert {str(c): n for c, n in per_class.items()} == golden["per_class"]
    for c, expected in golden["distinct_min_max_use_per_class"].items():
        uses = Counter((k.sample.name, k.x, k.y) for k in crops if k.class_id == int(c))
        assert [len(uses), min(uses.values()), max(uses.values())] == expected
    assert plan.report(0)["empty"]["fine"] == [16]
    assert (plan.start(1), len(plan)) == (len(crops), 2 * len(crops))


def test_empty_classes_shares_go_to_the_others():
    plan = make_plan(classes=7, centroids=scattered(images(117), 5, 1))
    report = plan.report(0)
    assert report["crops"] == 117
    assert report["empty"]["fine"] == [5, 6]
    counts = report["per_class"]["fine"]
    assert sum(counts) == 58
    assert counts[5:] == [0, 0]
    assert max(counts[:5]) - min(counts[:5]) <= 1
    assert report["random"]["fine"] == 59


@settings(max_examples=60, deadline=None)
@given(ints(1, 60), ints(1, 8), ints(0, 10_000), ints(1, 300), ints(1, 4), st.floats(0, 1), st.floats(0.01, 0.9))
def test_an_epoch_is_complete_and_no_image_repeats_too_often_for_a_class(
    fine, classes, seed, length, cap, share, density
):
    samples = images(fine)
    sampling, centroids = (
        SamplingConfig(class_uniform=share, max_repeats=cap),
        scattered(samples, classes, seed, density),
    )
    plan = plan_of(samples, centroids, classes, seed=seed, epochs=2, epoch_samples=length, sampling=sampling)
    crops = plan.crops(1)
    assert len(crops) == length
    uses = Counter((c.class_id, c.sample.name) for c in crops if c.class_id >= 0)
    assert max(uses.values(), default=0) <= cap
    anywhere = Counter(c.sample.name for c in crops if c.class_id < 0)
    if anywhere:  # random images are used evenly
        assert max(anywhere.values()) - min([*anywhere.values()] + [0] * (len(anywhere) < fine)) <= 1
    assert sum(n for (c, _), n in uses.items() if c >= 0) <= int(length * share)
    assert all((c.x >= 0) == (c.class_id >= 0) for c in crops)


@pytest.mark.parametrize(("fine", "pseudo", "length"), [(3, 300, 100), (300, 3, 300), (117, 117, 118), (5, 500, None)])
def test_the_mix_is_exactly_half_and_half_at_any_sizes(fine, pseudo, length):
    plan = make_plan(fine, pseudo, epoch_samples=length, epochs=4, pseudo_config=PseudoConfig(fine_only_epochs=1))
    total = length or fine
    for epoch in range(3):
        sources = Counter(c.source for c in plan.crops(epoch))
        assert sources["pseudo"] == (total + 1) // 2
        assert sources["fine"] == total // 2
        assert plan.report(epoch)["pseudo"] == sources["pseudo"]
    assert {c.source for c in plan.crops(3)} == {"fine"}
    assert len(plan.crops(3)) == total


def test_other_shares_are_kept_to_a_crop_and_fine_only_epochs_have_none():
    for share in (0.0, 0.1, 0.25, 0.75, 1.0):
        plan = make_plan(40, 60, epoch_samples=80, pseudo_config=PseudoConfig(share=share))
        assert Counter(c.source for c in plan.crops(0))["pseudo"] == round(80 * share)
    plan = make_plan(40, 60, epoch_samples=80, epochs=2, pseudo_config=PseudoConfig(fine_only_epochs=2))
    assert all(c.source == "fine" for epoch in range(2) for c in plan.crops(epoch))


def test_epochs_differ_and_seeds_differ_but_nothing_else_does():
    plan, again, other = make_plan(), make_plan(), make_plan(seed=6)
    assert [key(c) for c in plan.crops(0)] == [key(c) for c in again.crops(0)]
    assert [key(c) for c in plan.crops(0)] != [key(c) for c in plan.crops(1)]
    assert [key(c) for c in plan.crops(0)] != [key(c) for c in other.crops(0)]
    assert len({c.seed for epoch in range(3) for c in plan.crops(epoch)}) == 3 * 117
    assert all(0 <= c.seed < 1 << 63 for c in plan.crops(0))
    # asked for in another order, from a copy, after others were dropped from the cache
    copy = pickle.loads(pickle.dumps(again))
    assert [key(copy.at(p)) for p in (350, 0, 200)] == [key(plan.at(p)) for p in (350, 0, 200)]


def test_the_plan_is_the_same_in_another_process_with_another_hash_seed():
    program = (
        "from tests.unit.hmsa_core.data.test_data_plan import make_plan, key; import hashlib; "
        "print(hashlib.sha256(repr([key(c) for e in range(3) for c in make_plan(pseudo=50).crops(e)]).encode()).hexdigest())"
    )
    env, prints = {"PYTHONPATH": str(Path(__file__).resolve().parents[4])}, set()
    for seed in ("0", "12345"):
        command, env["PYTHONHASHSEED"] = [sys.executable, "-c", program], seed
        prints.add(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)
    assert len(prints) == 1


def test_random_numbers_are_pinned():
    # These may never change: a resumed run would go on with other crops.
    assert raw(1, 2, 3, count=2).tolist() == [11579615010858559842, 9315557155380561176]
    assert permutation(8, 5, 0).tolist() == [0, 3, 1, 4, 7, 6, 2, 5]


def test_positions_of_a_run_lead_to_epochs_and_back():
    for mode in ("redistribute", "released"):
        options = {"sampling": SamplingConfig(empty_classes=mode), "pseudo_config": PseudoConfig(fine_only_epochs=2)}
        plan = make_plan(37, 20, epochs=5, epoch_samples=50, centroids=scattered(images(37), 5, 1), **options)
        lengths = [len(plan.crops(e)) for e in range(5)]
        assert len(plan) == sum(lengths)
        assert [plan.start(e) for e in range(5)] == [sum(lengths[:e]) for e in range(5)]
        expected = [(e, i) for e in range(5) for i in range(lengths[e])]
        assert [plan.locate(p) for p in range(len(plan))] == expected
        assert key(plan.at(len(plan) - 1)) == key(plan.crops(4)[-1])
    with pytest.raises(InputError, match="outside the run"):
        plan.at(len(plan))
    with pytest.raises(InputError, match="outside the run"):
        plan.crops(5)


def test_the_rest_of_capped_classes_is_given_away():
    samples = images(50)
    rare = [(samples[7].name, np.array([[0, 3, 4, 9], [0, 30, 40, 9]], np.int32))]
    common = [(s.name, np.array([[1, 5, 5, 9]], np.int32)) for s in samples if s is not samples[7]]
    sampling = SamplingConfig(max_repeats=4)
    plan = plan_of(samples, Centroids.collect(rare + common), 2, epoch_samples=40, sampling=sampling)
    assert plan.report(0)["per_class"]["fine"] == [4, 16]
    with pytest.raises(ValueError, match="cannot give 5"):
        cycle_capped(np.arange(3), np.array([1, 1, 1]), 5, 4)
    places = Counter((c.x, c.y) for c in plan.crops(0) if c.class_id == 0)
    assert places == {(3, 4): 2, (30, 40): 2}


def test_partners_are_fine_crops_and_depend_on_the_crop_alone():
    plan = make_plan(20, 30, epoch_samples=60)
    partners = [plan.partner(c) for c in plan.crops(0) if c.source == "pseudo"]
    assert all(p.source == "fine" and p.class_id >= 0 for p in partners)
    assert len({key(p) for p in partners}) > 20
    assert [key(plan.partner(c)) for c in plan.crops(0) if c.source == "pseudo"] == [key(p) for p in partners]
    bare = make_plan(20, 30, centroids=Centroids())
    assert bare.partner(next(c for c in bare.crops(0) if c.source == "pseudo")).class_id == -1


def test_nothing_to_learn_from_is_a_clear_error():
    with pytest.raises(ConfigError, match="no image with a fine label"):
        plan_of([], Centroids(), 3)
    with pytest.raises(ConfigError, match="no image with a fine label"):
        make_plan(0, 10, epoch_samples=10, pseudo_config=PseudoConfig(share=1.0, fine_only_epochs=1))
    assert len(make_plan(0, 10, epoch_samples=10, pseudo_config=PseudoConfig(share=1.0)).crops(0)) == 10


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_ranks_together_visit_each_position_once_in_order_from_any_step_on(world, batch):
    timeline = Timeline(make_plan(40, 0, epoch_samples=117), 8)
    assert timeline.total_steps > 10
    for start in range(timeline.total_steps + 1):
        passes = [list(timeline.batches(start, rank=rank, world=world, batch=batch)) for rank in range(world)]
        merged = [p for parts in zip(*passes, strict=True) for part in parts for p in part]
        assert merged == list(range(start * 8, timeline.total_steps * 8))


@settings(max_examples=300)
@given(
    st.integers(0, 500),
    st.floats(0, 1),
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.booleans(),
    st.randoms(),
)
def test_shares_add_up_and_respect_capacities(total, share, capacity, released, random):
    order = list(range(len(capacity)))
    random.shuffle(order)
    counts, anywhere = allot(total, share, capacity, order, released=released)
    assert all(n == 0 for n, cap in zip(counts, capacity, strict=True) if cap == 0)
    if released:
        each = int(total * share / len(capacity))
        assert set(counts) <= {0, each}
        assert anywhere == total - each * len(capacity)
        return
    assert sum(counts) + anywhere == total
    assert all(n <= cap for n, cap in zip(counts, capacity, strict=True))
    wanted = int(total * share)
    assert sum(counts) == min(wanted, sum(capacity))
    # as even as the capacities allow: an uncapped class never has two fewer than another
    open_counts = [n for n, cap in zip(counts, capacity, strict=True) if n < cap]
    assert not open_counts or max(counts) - min(open_counts) <= 1


def test_an_epoch_is_planned_once_also_where_epochs_differ_in_length(monkeypatch):
    options = {"sampling": SamplingConfig(empty_classes="released"), "pseudo_config": PseudoConfig(fine_only_epochs=2)}
    plan = make_plan(pseudo=40, epochs=6, **options)
    made = []
    real = EpochPlan._make
    monkeypatch.setattr(EpochPlan, "_make", lambda self, epoch: made.append(epoch) or real(self, epoch))
    for position in range(plan.start(2), plan.start(3)):
        plan.at(position)
    assert sorted(made) == [0, 2, 5], "the two that tell the lengths, and the one at hand"
