from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.io import sealed
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.labels import ConfidenceCode, ThresholdPolicy
from hmsa_core.labels.store.codes import EDGES
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy, from_threshold, keep
from hmsa_core.taxonomy import cityscapes
from pipeline.review.certificate import Certificate
from tests.support.cases import CASES
from tests.support.label_maps import toy_classes

CODE = ConfidenceCode()
LINEAGE = {"teacher": "t" * 64, "scales": [0.5, 1.0, 2.0], "flip": True, "precision": "bf16"}


def _policy(codes: list[int], **options: object) -> ThresholdPolicy:
    table = toy_classes(len(codes))
    entries = tuple(ClassPolicy(n, c, "measured", {"x": 1}) for n, c in zip(table.classes, codes, strict=True))
    return ThresholdPolicy(table, entries, **options)  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.sampled_from(EDGES))
@settings(max_examples=CASES)
def test_a_plain_number_keeps_what_the_floats_keep_and_255_elsewhere(seed: int, threshold: str) -> None:
    rng = np.random.default_rng(seed)
    p = np.where(rng.random((8, 9)) < 0.2, CODE.values[rng.integers(0, 256, (8, 9))], rng.random((8, 9)))
    p = p.astype(np.float32)
    label = rng.choice([*range(19), 255], (8, 9)).astype(np.uint8)
    kept = from_threshold(threshold, cityscapes()).apply(label, CODE.encode(p))
    assert np.array_equal(kept, np.where(p >= np.float32(threshold), label, 255))


@given(st.lists(st.integers(0, 256), min_size=5, max_size=5), st.integers(0, 4), st.integers(0, 50))
@settings(max_examples=CASES)
def test_raising_the_cut_of_a_class_only_takes_its_own_pixels_away(codes: list[int], c: int, more: int) -> None:
    rng = np.random.default_rng(sum(codes))
    label, code = rng.integers(0, 5, (20, 20)).astype(np.uint8), rng.integers(0, 256, (20, 20)).astype(np.uint8)
    low = keep(label, code, np.array(codes))
    high = keep(label, code, np.array([min(256, v + more) if i == c else v for i, v in enumerate(codes)]))
    changed = low != high
    assert (high[changed] == 255).all()
    assert (low[changed] == c).all()


def test_a_withheld_class_keeps_nothing_not_even_code_255_and_ids_outside_become_255() -> None:
    label = np.array([[0, 1]], np.uint8)
    code = np.full((1, 2), 255, np.uint8)
    policy = _policy([WITHHELD, 255])
    assert policy.apply(label, code).tolist() == [[255, 1]]
    assert policy.codes().tolist() == [256, 255]
    assert policy.entries[0].threshold is None
    assert policy.entries[1].threshold == EDGES[255]
    outside = np.array([[2, 200, 255]], np.uint8)
    assert (_policy([0, 0]).apply(outside, np.full((1, 3), 255, np.uint8)) == 255).all()


def test_a_policy_file_gives_back_the_same_policy(tmp_path: Path) -> None:
    table = np.linspace(0, 1, 2 * 256).reshape(2, 256)
    policy = _policy([3, WITHHELD], table=table, binding=LINEAGE, settings={"target": 0.98}, evidence={"blocks": 3})
    digest = policy.save(tmp_path / "p.json")
    back = ThresholdPolicy.load(tmp_path / "p.json")
    assert back.digest == policy.digest == digest
    assert back.entries == policy.entries
    assert back.classes == policy.classes
    assert back.table is not None
    assert np.allclose(back.table, table, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher", "u" * 64),
        ("scales", [1.0]),
        ("flip", False),
        ("precision", "fp32"),
        ("parameters", {"kind": "max"}),  # of the same weights as a single-scale model: the hash tells nothing
    ],
)
def test_a_measured_policy_is_refused_for_another_teacher_or_inference(key: str, value: object) -> None:
    lineage = {**LINEAGE, "parameters": {"kind": "average"}}
    policy = _policy([1, 2], binding=binding(lineage))
    policy.check({**lineage, "scales": [2.0, 0.5, 1.0]}, policy.classes)  # the order of scales means nothing
    with pytest.raises(ConfigError, match="kind: average here, max there" if key == "parameters" else key):
        policy.check({**lineage, key: value}, policy.classes)
    other = {**lineage, "parameters": {"kind": "hierarchical"}}
    with pytest.raises(ConfigError, match="kind: average here, another there"):
        policy.check(other, policy.classes)
    with pytest.raises(ConfigError, match="kind: another here, average there"):
        _policy([1, 2], binding=binding(other)).check(lineage, policy.classes)


def test_a_plain_number_fits_any_teacher_and_other_classes_types_and_shapes_are_refused() -> None:
    policy, label = from_threshold(0.9, cityscapes()), np.zeros((2, 2), np.uint8)
    policy.check({"teacher": "whoever"}, cityscapes())
    with pytest.raises(ConfigError, match="classes"):
        policy.check({}, toy_classes())
    with pytest.raises(InputError, match="uint8"):
        policy.apply(label, np.zeros((2, 2), np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="code is"):
        policy.apply(label, np.zeros((2, 3), np.uint8))
    with pytest.raises(ConfigError, match="one entry for each class"):
        ThresholdPolicy(cityscapes(), ())


def test_one_dimensional_and_empty_maps_keep_their_shape() -> None:
    policy = from_threshold(0.5, cityscapes())
    assert policy.apply(np.uint8([1, 2]), np.uint8([0, 255])).tolist() == [255, 2]
    assert policy.apply(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)).shape == (0, 4)
    batch = np.zeros((2, 3, 4), np.uint8)
    assert policy.apply(batch, batch + 255).tolist() == batch.tolist()
    strided = np.zeros((4, 6), np.uint8)[:, ::2]
    assert policy.apply(strided, strided).shape == (4, 3)


@pytest.mark.parametrize(
    ("read", "what"),
    [(ThresholdPolicy.load, "a policy"), (Curves.load, "a curves file"), (Certificate.load, "a certificate")],
)
def test_a_file_of_another_kind_or_an_edited_one_is_refused(tmp_path: Path, read: Callable[[Path], object], what: str):
    file = tmp_path / "x.json"
    sealed.write(file, {"format": "hmsa-merge-rules", "version": 1})
    with pytest.raises(StoreError, match=rf"x\.json: not {what} of version \d \(found hmsa-merge-rules 1\)"):
        read(file)
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    with pytest.raises(StoreError, match=r"x\.json: damaged or edited"):
        read(file)


def test_an_entry_whose_code_and_threshold_disagree_is_refused(tmp_path: Path) -> None:
    _policy([3, 7]).save(tmp_path / "p.json")
    value = {k: v for k, v in sealed.read(tmp_path / "p.json").items() if k != "digest"}
    value["classes"][1]["threshold"] = "0.99"
    sealed.write(tmp_path / "p.json", value)
    with pytest.raises(StoreError, match="code 7 is not threshold"):
        ThresholdPolicy.load(tmp_path / "p.json")
