"""The first table of the results page: one line a claim, from the best evidence, with a link that leads there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from research.results.page import Sources, results_page
from research.tests.ablations import put_cell


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources.of(tmp_path)


def summary(sources: Sources) -> dict[str, list[str]]:
    """Claim -> the cells of its line."""
    text = results_page(sources).split("## In short")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


def test_confirming_seeds_come_before_those_that_were_looked_at(sources: Sources) -> None:
    folder = sources.ablations / "labels"
    for seed, qualities in ((0, (0.9, 0.5)), (100, (0.5, 0.9)), (101, (0.5, 0.9))):
        for row, quality in zip(("both", "attention"), qualities, strict=True):
            put_cell(folder, row, seed, quality)
    for row, quality in (("auto", 0.7), ("baseline", 0.7)):
        put_cell(folder, row, 0, quality)
    found = summary(sources)
    paper, points, _, seeds, verdict, _ = found["both > attention alone"]
    assert re.fullmatch(r"100: -\S+, 101: -\S+ \(confirming\)", seeds)
    assert (paper, verdict) == (">", "contradicted")
    assert points.startswith("-")
    assert re.fullmatch(r"0: \S+ \(exploring\)", found["auto-labels > baseline"][3])
    assert found["auto-labels > baseline"][4] == "not shown (one seed)"
    assert found["both > baseline"][0] == "+1.4"
    assert found["auto + coarse > coarse as drawn"][1] == "not measured yet"
    assert "hierarchical > average" not in found, "no cell of that table is there"


def test_each_link_leads_to_a_heading_of_the_page(repo: Path) -> None:
    page = (repo / "docs" / "results.md").read_text()
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", page, re.M)}
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert {"fusing-scales", "attention-and-labels", "camvid-variant-default"} <= links <= headings


def test_cost_is_told_beside_the_papers_with_what_is_missing(sources: Sources) -> None:
    macs = {"train_per_crop": 10, "inference_per_image": 2_000_000_000, "image": [8, 8]}
    for row, total in (("single-1", 1000), ("hierarchical-0.5-1-2", 1265)):
        put_cell(sources.ablations / "scales", row, 0, 0.8, macs=macs | {"train_total": total})
    page = results_page(sources)
    assert "hierarchical 1.26 (paper: 1.25); explicit over {0.5, 1, 2} not measured yet (paper: 5.25)" in page
