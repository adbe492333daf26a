from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels import ConfidenceCode
from hmsa_core.labels.store.codes import EDGES
from tests.support.cases import CASES

CODE = ConfidenceCode()
GRID = [f"{i / 100:.2f}" for i in range(100)] + [f"{i / 1000:.3f}" for i in range(900, 1000)] + ["0.9995", "0.9999"]
PROBABILITIES = hnp.arrays(np.float32, st.integers(0, 200), elements=st.floats(0, 1, width=32))


def test_there_are_256_strictly_increasing_edges_every_grid_threshold_and_a_refined_top() -> None:
    assert len(EDGES) == 256
    assert all(Decimal(a) < Decimal(b) for a, b in pairwise(EDGES))
    assert (np.diff(CODE.values) > 0).all()
    assert EDGES[0] == "0.00"
    assert Decimal(EDGES[-1]) < 1
    edges, grid = {Decimal(e) for e in EDGES}, {Decimal(t) for t in GRID}
    assert len(grid) == 192
    assert grid <= edges
    assert len(edges - grid) == 64
    assert all(Decimal("0.95") <= e < 1 for e in edges - grid)


@given(PROBABILITIES, st.sampled_from(EDGES), st.sampled_from(EDGES))
@settings(max_examples=CASES)
def test_a_threshold_keeps_exactly_what_the_float_comparison_keeps_and_a_higher_one_no_more(
    p: np.ndarray, one: str, other: str
) -> None:
    code = CODE.encode(p)
    for threshold in (one, other):
        assert np.array_equal(code >= CODE.code_for(threshold), p >= np.float32(threshold))
    low, high = sorted((CODE.code_for(one), CODE.code_for(other)))
    assert np.count_nonzero(code >= high) <= np.count_nonzero(code >= low)


def test_values_next_to_each_edge_fall_on_the_right_side() -> None:
    edges = CODE.values
    for p in (edges, np.nextafter(edges, np.float32(2)), np.nextafter(edges[1:], np.float32(-1))):
        assert np.array_equal(CODE.encode(p), np.searchsorted(edges, p, side="right") - 1)
    assert CODE.encode(np.float32([1.0, np.float32(1.0005), 0.0])).tolist() == [255, 255, 0]


@given(st.decimals(0, 1, places=7, allow_nan=False, allow_infinity=False))
def test_a_threshold_off_the_grid_is_refused_with_its_neighbours_never_rounded(value: Decimal) -> None:
    edges = [Decimal(e) for e in EDGES]
    if value in edges:
        assert edges[CODE.code_for(str(value))] == value
        return
    with pytest.raises(ConfigError) as refused:
        CODE.code_for(str(value))
    below, above = CODE.neighbours(str(value))
    assert below is not None
    assert below in refused.value.message
    assert Decimal(below) < value
    if above is not None:
        assert above in refused.value.message
        assert value < Decimal(above)


@pytest.mark.parametrize("same", ["0.9", "0.90", 0.9, np.float32(0.9), np.float64(0.9), Decimal("0.9")])
def test_a_threshold_may_be_text_or_any_float(same: object) -> None:
    assert CODE.code_for(same) == EDGES.index("0.90")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["high", "nan", "inf", "", float("nan")])
def test_a_threshold_that_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="number|finite"):
        CODE.code_for(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5, np.inf])
def test_values_that_are_no_probability_and_integers_which_are_codes_or_bytes_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        CODE.encode(np.float32([bad]))
    with pytest.raises(InputError, match="float"):
        CODE.encode(np.zeros((2, 2), np.uint8))


def test_shape_and_order_survive_also_for_strided_views() -> None:
    p = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    assert np.array_equal(CODE.encode(p[:, ::2]), CODE.encode(p)[:, ::2])
    assert CODE.encode(np.zeros((0, 3), np.float32)).shape == (0, 3)
