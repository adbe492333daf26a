"""The promises of docs/reliability.md and the pages name tests, code and commands that are there; no page has a gap left open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((REPO / "docs").glob("*.md"))
PLACEHOLDER = re.compile(
    r"\b(TODO|TBD|TBA|FIXME|XXX|WIP|to be (measured|filled in)|lorem ipsum)\b|\?\?\?|<!-- *(later|open|todo)|\|\s*\.\.\.\s*\|"
)
SECTION = (REPO / "docs" / "reliability.md").read_text("utf-8").partition("## Promises")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!promise \||---)(.+?) \| (.+?) \|$", SECTION, re.MULTILINE)


def test_each_promise_names_tests_that_exist() -> None:
    assert len(ROWS) >= 10
    for promise, row in ROWS:
        paths = [REPO / name for name in re.findall(r"`(tests/[^`]+)`", row)]
        assert paths, promise
        for path in paths:
            files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
            assert any(re.search(r"^(async )?def test_", file.read_text(), re.MULTILINE) for file in files), path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_what_a_page_names_of_the_tests_is_there_and_it_has_no_placeholder(page: Path) -> None:
    text = page.read_text("utf-8")
    assert [found[0] for found in PLACEHOLDER.finditer(text)] == []
    for text_ in ("| a | TODO |", "takes ??? s", "| x | ... |", "to be measured", "<!-- later: x -->"):
        assert PLACEHOLDER.search(text_), "such a placeholder would be found"
    for name, test in re.findall(r"\b((?:\w+/)*tests/[\w./-]*\w)(?:::(\w+))?", text):
        assert (REPO / name).exists(), name
        assert not test or re.search(rf"^(async )?def {test}\b", (REPO / name).read_text("utf-8"), re.MULTILINE), test


def test_the_page_on_reliability_names_modules_and_commands_that_are_there() -> None:
    text = (REPO / "docs" / "reliability.md").read_text("utf-8")
    modules = re.findall(r"`((?:hmsa_core|pipeline)(?:\.\w+)+)`", text)
    assert len(modules) > 5
    for name in modules:
        *parents, last = name.split(".")
        path, folder = REPO.joinpath(*parents), REPO.joinpath(*parents, last)
        is_member = path.with_suffix(".py").exists() and re.search(
            rf"^(def |class )?{last}\b", path.with_suffix(".py").read_text(), re.MULTILINE
        )
        assert folder.is_dir() or folder.with_suffix(".py").exists() or is_member, name
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= set(targets)
