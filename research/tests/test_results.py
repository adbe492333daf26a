"""Pages follow from the tables: verdicts that can go against a claim, blocks that are made anew, collected workspaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InputError
from research import results
from research.claims import CLAIMS, Claim
from research.collect import collect
from research.figures import EXPLORING, TABLES, Figure, Made, figures, replace
from research.results import Tables, made_anew, main, verdict
from research.tests.ablations import SHA, finished_workspace

MADE = Made("c0ffee", "a machine")
CLAIM = Claim("g", "scales", "a", "b", "a > b")


def interval(row: str, metric: str, value: float, low: float, high: float, kind: str = EXPLORING) -> list[Figure]:
    ends = zip(("", "_low", "_high"), (value, low, high), strict=True)
    whole = [MADE.figure("scales", row, f"{metric}{end}", x, setting=kind) for end, x in ends]
    return [*whole, MADE.figure("scales", row, metric, value, seed=0, setting=kind)]


@pytest.mark.parametrize(
    ("ends", "claim", "seeds", "word"),
    [
        ((0.01, 0.03), {}, 3, "shown"),
        ((-0.03, -0.01), {}, 3, "contradicted"),
        ((-0.01, 0.03), {}, 3, "not shown"),
        ((0.01, 0.03), {"hurts": True}, 3, "contradicted"),
        ((-0.03, -0.01), {"hurts": True}, 3, "shown"),
        ((-0.004, 0.002), {"allowed": 0.005}, 3, "shown"),
        ((-0.006, 0.002), {"allowed": 0.005}, 3, "not shown"),
        ((-0.03, -0.006), {"allowed": 0.005}, 3, "contradicted"),
        ((0.01, 0.03), {}, 1, "suggested"),
        ((-0.03, -0.01), {}, 1, "suggested the other way round"),
        ((None, None), {}, 3, "not shown"),
    ],
)
def test_a_verdict_follows_from_the_interval_the_claim_and_the_number_of_seeds(
    ends: tuple[float | None, float | None], claim: dict[str, object], seeds: int, word: str
) -> None:
    made = Claim("g", "t", "a", "b", "a > b", **claim)
    assert verdict(made, {"difference_low": ends[0], "difference_high": ends[1]}, seeds) == word


def test_confirming_seeds_come_before_those_that_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "CLAIMS", (CLAIM, Claim("g", "scales", "a", "c", "a > c", "+0.5")))
    lines = interval("a - b", "difference", 0.02, 0.01, 0.03)
    lines += interval("a - b", "boundary_difference", 0.01, -0.01, 0.02)
    replace(tmp_path / "scales.parquet", lines)
    page = "before\n<!-- figures: claims g -->\nold\n<!-- end -->\nafter\n"
    first = made_anew(page, tmp_path)
    assert "| a > b | - | +2.00 [+1.00, +3.00] | +1.00 [-1.00, +2.00] | 1 exploring | suggested |" in first
    assert "| a > c | +0.5 | - | - | - | not measured |" in first
    assert first.startswith("before\n")
    assert first.endswith("after\n")
    assert "old" not in first
    replace(tmp_path / "scales.parquet", interval("a - b", "difference", -0.02, -0.03, -0.01, "confirming"))
    assert "1 confirming | suggested the other way round" in made_anew(first, tmp_path)


def test_a_block_that_nobody_makes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="block 'rowz scales': expected one of claims, workspaces"):
        made_anew("<!-- figures: rowz scales -->\n<!-- end -->", tmp_path)


def test_a_shown_table_tells_the_classes_and_what_stands_when_all_are_asked_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = interval("a", "mean_iou", 0.5, 0.4, 0.6)
    for row, chance in (("a - b", 0.01), ("a - c", 0.03), ("a - d", 0.5)):
        lines += interval(row, "difference", 0.02, 0.01, 0.03)
        lines.append(MADE.figure("scales", row, "chance", chance, setting=EXPLORING))
        for name, ends in (("road", (0.05, 0.01, 0.09)), ("car", (-0.02, -0.04, -0.01)), ("sky", (0.0, -0.1, 0.1))):
            for end, value in zip(("", "_low", "_high"), ends, strict=True):
                lines.append(MADE.figure("scales", row, f"difference{end}", value, setting=EXPLORING, name=name))
    replace(tmp_path / "scales.parquet", lines)
    assert main(["--show", "scales", "--tables", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| `a - b` | +2.00 [+1.00, +3.00] | - | yes | road +5.00 | car -2.00 |" in said
    assert "| `a - c` | +2.00 [+1.00, +3.00] | - | no |" in said, "0.03 > 0.05 / 2"
    assert main(["--show", "scale", "--tables", str(tmp_path)]) == 2
    assert "no table 'scale': choose one of scales" in capsys.readouterr().err


def test_the_check_fails_where_a_page_is_not_what_the_tables_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setattr(results, "PAGES", ("page.md",))
    monkeypatch.setattr(results, "CLAIMS", (CLAIM,))
    replace(tmp_path / "scales.parquet", interval("a - b", "difference", 0.02, 0.01, 0.03))
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: claims g -->\n<!-- end -->\n")
    assert main(["--check", "--tables", str(tmp_path)]) == 1
    assert "page.md: not up to date" in capsys.readouterr().err
    assert main(["--tables", str(tmp_path)]) == 0
    assert "| a > b | - | +2.00 [+1.00, +3.00] | - | 1 exploring | suggested |" in page.read_text()
    assert main(["--check", "--tables", str(tmp_path)]) == 0


def test_the_committed_pages_are_what_the_tables_give() -> None:
    assert main(["--check"]) == 0, "python -m research.results"


def test_each_claim_of_the_page_is_a_difference_of_its_table() -> None:
    known = Tables(TABLES)
    assert [c for c in CLAIMS if known.best(c.table, f"{c.row} - {c.baseline}") is None] == []


def test_the_figures_of_a_finished_workspace_replace_its_older_ones(tmp_path: Path) -> None:
    ws = finished_workspace(tmp_path / "ws")
    for _ in range(2):
        table = collect(ws, tmp_path / "tables", None)
    found = {(x.row, x.setting, x.name, x.metric): x.value for x in figures(table)}
    assert len(found) == len(figures(table)), "replaced, not doubled"
    assert found["student", "multi", "", "mean_iou_high"] == 0.6
    assert found["student - control", "multi", "car", "difference"] == 0.5
    assert found["policy", "measured", "pole", "threshold"] == 0.9
    assert found["teacher-train", "", "", "seconds"] == 600.0
    collect(ws, tmp_path / "tables", "another")
    assert {x.table for x in figures(table)} == {"demo", "another"}
    page = made_anew("<!-- figures: workspaces demo -->\n<!-- end -->", tmp_path / "tables")
    assert "| demo | student - control | +1.20 [-0.30, +2.00] | 12 |" in page


def test_a_workspace_without_results_or_with_other_weights_is_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = finished_workspace(tmp_path / "ws")
    atomic.write_json(ws.path("models/student/model.json"), {})
    monkeypatch.setattr("research.collect.read_meta", lambda _folder: {"weights_sha256": SHA[::-1]})
    with pytest.raises(InputError, match="models/student: other weights than were judged"):
        collect(ws, tmp_path, None)
    ws.path("evaluation/metrics.json").unlink()
    with pytest.raises(InputError, match="not there"):
        collect(ws, tmp_path, None)
