"""Dependencies: every import is declared, everything declared is locked with hashes, every licence is known."""

from __future__ import annotations

import ast
import datetime
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools import licences
from tools.lock import LOCK, normal, read_lock

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
OWN = {"hmsa_core", "pipeline", "tests", "research", "examples", "tools", "conftest"}


EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}


def _declared(*extras: str) -> set[str]:
    """Normal names that the package needs with these extras; an extra may name other extras of this package."""
    found = {normal(Requirement(line).name) for line in PROJECT["dependencies"]}
    for requirement in (requirement for extra in extras for requirement in EXTRAS[extra]):
        name = normal(requirement.name)
        found |= _declared(*requirement.extras) if name == "hmsa-autolabel" else {name}
    return found


# What each folder may import. The library and the commands for labelling need no extra; the page, the report and the
# nightly flow each need one; research, tools and tests may use all.
MAY_IMPORT = {
    "hmsa_core": _declared(),
    "hmsa_core/io/remote.py": _declared("remote"),
    "hmsa_core/io/engine.py": _declared("ray"),
    "hmsa_core/labels/formats": _declared("exchange"),
    "hmsa_core/inference/folder/cvat_function.py": _declared("exchange"),
    "hmsa_core/models/export.py": _declared("onnx"),
    "hmsa_core/runtime/tracking.py": _declared("tracking"),
    # Teachers of other tools; a damaged ONNX file is an error of protobuf, which onnx brings.
    "hmsa_core/inference/teachers": _declared("onnx", "huggingface") | {"protobuf"},
    "pipeline": _declared(),
    "pipeline/page": _declared("ui"),
    "pipeline/report": _declared("report"),
    "pipeline/report/plots.py": _declared("report"),
    "pipeline/doctor": _declared("dvc"),
    "pipeline/cli/completion.py": _declared("dvc"),
    "pipeline/night": _declared("nightly"),
    "examples": _declared(),
    "examples/streets/tests": _declared("all", "dev"),
    "tools": _declared("all", "dev"),
    "research": _declared("all", "dev"),
    "tests": _declared("all", "dev"),
}


def _foreign_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found - OWN - set(sys.stdlib_module_names)


def _folder_of(path: Path) -> str:
    """The longest key of MAY_IMPORT that holds the file."""
    place = path.relative_to(REPO).as_posix()
    return max((folder for folder in MAY_IMPORT if f"{place}/".startswith(f"{folder}/")), key=len)


@pytest.fixture(scope="module")
def providers() -> dict[str, list[str]]:
    """Import name -> normal names of the installed distributions that provide it."""
    return {name: sorted({normal(d) for d in found}) for name, found in metadata.packages_distributions().items()}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_import_belongs_to_a_declared_package(folder: str, providers: dict[str, list[str]]) -> None:
    unlisted = {}
    place = REPO / folder
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        if _folder_of(path) != folder:
            continue
        for name in _foreign_imports(path):
            if not set(providers.get(name, [])) & MAY_IMPORT[folder]:
                unlisted[f"{path.relative_to(REPO)}: {name}"] = providers.get(name, ["not installed"])
    assert not unlisted, "imported, but not in pyproject.toml for this folder"


def test_every_declared_package_is_locked_with_hashes_in_the_declared_range() -> None:
    locked = read_lock()
    assert all(entry.hashes for entry in locked), [e.name for e in locked if not e.hashes]
    versions: dict[str, list[str]] = {}
    for entry in locked:
        versions.setdefault(entry.name, []).append(entry.version)
    lines = [Requirement(line) for line in PROJECT["dependencies"]]
    for wanted in [*lines, *(r for extra in EXTRAS.values() for r in extra if normal(r.name) != "hmsa-autolabel")]:
        assert normal(wanted.name) in versions, f"{wanted.name} is not in requirements.lock: make lock"
        for version in versions[normal(wanted.name)]:
            assert wanted.specifier.contains(version, prereleases=True), f"{wanted}: locked is {version}"


def test_the_demos_lock_is_the_part_of_the_lock_that_the_demo_needs() -> None:
    demo = read_lock(LOCK.with_name("requirements-demo.lock"))
    assert set(demo) <= set(read_lock()), "make lock"
    names = {entry.name for entry in demo}
    needed, todo = set(), list(_declared("demo"))
    while todo:
        if (name := todo.pop()) not in needed:
            needed.add(name)
            lines = map(Requirement, metadata.requires(name) or ())
            todo += [normal(r.name) for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert needed <= names, "make lock"
    assert not names & {"pytest", "ray", "prefect", "transformers", "onnxruntime", "cvat-sdk", "mlflow-skinny", "moto"}


def test_torch_is_new_enough_for_its_safe_loader() -> None:
    declared = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert not declared.specifier.contains("2.10.9"), "weights_only was bypassed in older versions"
    assert all(Version(e.version) >= Version("2.11") for e in read_lock() if e.name == "torch")


def test_the_licence_list_names_every_locked_package_and_no_other() -> None:
    locked = {entry.name for entry in read_lock()}
    assert set(licences.listed()) == locked, "python -m tools.licences"


def test_installed_packages_state_the_licences_of_the_list() -> None:
    stated = {name: licences.installed_licence(name) for name in licences.listed()}
    differ = {n: (said, licences.listed()[n]) for n, said in stated.items() if said and said != licences.listed()[n]}
    assert not differ, "python -m tools.licences"


def test_every_licence_is_permissive_or_an_exception_with_a_reason_and_a_date() -> None:
    exceptions = licences.exceptions()
    forbidden = {n: e for n, e in licences.listed().items() if not licences.permitted(e) and e not in exceptions}
    assert not forbidden
    for licence, (reason, until) in exceptions.items():
        assert licence in licences.listed().values(), f"exception {licence} is needed by nobody"
        assert len(reason) > 20
        datetime.date.fromisoformat(until)


def test_choices_need_one_permitted_part_and_sums_need_all() -> None:
    fine = ("MIT", "EPL-2.0 OR GPL-2.0-or-later", "MPL-2.0 AND (Apache-2.0 OR MIT)")
    others = ("GPL-3.0-only", "MIT AND GPL-2.0-only", "MPL-2.0 AND (AGPL-3.0 OR GPL-2.0)", "unknown")
    assert [licences.permitted(each) for each in (*fine, *others)] == [True] * 3 + [False] * 4
