"""Thresholds as people write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels import ConfidenceCode, ThresholdPolicy
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from pipeline.inspector.stats import OffGridError, code_of, parse_cuts, to_policy

EDGES = ConfidenceCode().edges


@given(st.sampled_from(range(256)))
def test_every_edge_is_its_own_code_however_many_zeros_are_written(code: int) -> None:
    assert code_of(EDGES[code]) == code
    assert code_of(EDGES[code] + "000") == code


@given(st.decimals(0, 1, places=6))
def test_a_value_between_edges_is_refused_with_the_two_beside_it(value: object) -> None:
    if str(float(str(value))) in {str(float(edge)) for edge in EDGES}:
        assert float(EDGES[code_of(str(value))]) == float(str(value))
        return
    with pytest.raises(OffGridError) as caught:
        code_of(str(value))
    near = caught.value.neighbours
    assert float(near[0]) < float(str(value))
    if len(near) == 2:
        assert float(str(value)) < float(near[1])
        assert EDGES.index(near[1]) == EDGES.index(near[0]) + 1
    assert all(edge in caught.value.message for edge in near)


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "0,9", "policy", "<script>"])
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_cuts(cityscapes(), text)


def test_pins_win_over_the_common_threshold() -> None:
    cuts = parse_cuts(cityscapes(), "0.9", ["rider:0.5", "traffic light:withheld"])
    assert cuts.codes[cityscapes().index("rider")] == 50
    assert cuts.codes[cityscapes().index("traffic light")] == 256
    assert cuts.codes[0] == 90
    assert (cuts.statuses[12], cuts.statuses[6], cuts.statuses[0]) == ("yours", "withheld", "one for all")
    assert cuts.edge(6) == "withheld"


@pytest.mark.parametrize("pair", ["rider", "nobody:0.9", "rider:0.12345"])
def test_a_pin_that_means_nothing_is_refused(pair: str) -> None:
    with pytest.raises((ConfigError, InputError)):
        parse_cuts(cityscapes(), "0.9", [pair])


@given(
    st.sampled_from(EDGES),
    st.dictionaries(st.sampled_from(cityscapes().classes), st.sampled_from([*EDGES, "withheld"]), max_size=19),
)
def test_a_saved_policy_keeps_exactly_what_the_cuts_keep(tmp_path_factory, edge: str, pins: dict[str, str]) -> None:
    classes = cityscapes()
    cuts = parse_cuts(classes, edge, [f"{name}:{value}" for name, value in pins.items()])
    path = tmp_path_factory.getbasetemp() / "saved.json"
    to_policy(cuts, classes, None).save(path)
    loaded = ThresholdPolicy.load(path)
    rng = np.random.default_rng(1)
    label, code = rng.integers(0, 19, (32, 32)).astype(np.uint8), rng.integers(0, 256, (32, 32)).astype(np.uint8)
    expected = np.where(code >= cuts.codes[label], label, 255)
    assert np.array_equal(loaded.apply(label, code), expected)


def test_saving_on_top_of_a_measured_policy_keeps_its_evidence_where_nothing_changed(tmp_path: Path) -> None:
    classes = cityscapes()
    measured = from_threshold("0.9", classes)
    entries = tuple(type(e)(e.name, e.code, "measured", {"blocks": 30}) for e in measured.entries)
    measured = ThresholdPolicy(classes, entries, table=np.full((19, 256), 0.9), binding={"teacher": "x"})
    cuts = parse_cuts(classes, "policy", ["rider:0.97"], {"policy": measured})
    saved = to_policy(cuts, classes, measured)
    assert saved.entries[0].status == "measured"
    assert saved.entries[0].evidence == {"blocks": 30}
    rider = saved.entries[12]
    assert (rider.status, rider.threshold) == ("given", "0.97")
    assert rider.evidence["was"] == {"code": 90, "threshold": "0.90", "status": "measured"}
    assert saved.binding == {"teacher": "x"}
    assert saved.table is not None
