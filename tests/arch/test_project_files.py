"""Files for outsiders say what is true: workflow, hooks, citation, changelog."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

import hmsa_core

REPO = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
MAKE = re.compile(r"\bmake ((?:[a-z-]+ ?)+)")


def _read(path: str) -> str:
    return (REPO / path).read_text("utf-8")


def test_the_workflow_runs_targets_of_the_makefile_on_both_versions_of_python() -> None:
    workflow = yaml.safe_load(_read(".github/workflows/ci.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    named = [target for step in steps for found in MAKE.findall(step.get("run", "")) for target in found.split()]
    assert {"setup", "lint", "type", "test", "test-full"} <= set(named) <= TARGETS
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert workflow["jobs"]["fast"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert workflow["permissions"] == {"contents": "read"}


def test_documents_name_targets_of_the_makefile_only() -> None:
    for path in ("README.md", "CONTRIBUTING.md", ".github/pull_request_template.md"):
        code = re.findall(r"`(make [^`]+)`|^(make [^#\n]+)", _read(path), re.MULTILINE)
        words = {word for pair in code for word in "".join(pair).split() if re.fullmatch(r"[a-z-]+", word)} - {"make"}
        assert words <= TARGETS, path


def test_hooks_citation_and_changelog_are_of_this_version() -> None:
    hooks = yaml.safe_load(_read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert {"ruff", "mypy"} <= {hook["id"] for hook in hooks}
    assert yaml.safe_load(_read("CITATION.cff"))["version"] == hmsa_core.__version__
    assert f"## {hmsa_core.__version__}" in _read("CHANGELOG.md")
    assert yaml.safe_load(_read(".github/dependabot.yml"))["version"] == 2


def test_the_site_builds_without_network_and_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "fonts.googleapis" not in start
    assert "autolabel label" in (tmp_path / "site" / "commands.html").read_text("utf-8")
    assert "teacher_train" in (tmp_path / "site" / "settings.html").read_text("utf-8")
