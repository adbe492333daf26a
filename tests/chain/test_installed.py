"""The package as a stranger installs it: built, installed into an environment of its own, used far from the checkout."""

from __future__ import annotations

import email
import os
import re
import subprocess
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from hmsa_core.labels import LabelStore
from tests.support.chain import REPO
from tests.support.inference import save_model
from tools import release

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of an environment that holds the built wheel; other packages are those of this one."""
    base = tmp_path_factory.mktemp("installed")
    _, wheel = release.build(base / "dist")
    assert release.check_wheel(wheel) == []
    return release.install(wheel, base / "env")


def _run(bin_folder: Path, folder: Path, *command: str) -> str:
    done = _ended(bin_folder, folder, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ended(bin_folder: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    given = {"cwd": folder, "env": _environment(bin_folder), "capture_output": True, "text": True}
    return subprocess.run([bin_folder / command[0], *command[1:]], **given)


def _environment(bin_folder: Path) -> dict[str, str]:
    """A user's shell without the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}


def test_a_wheel_that_lacks_a_file_or_holds_another_is_refused(installed: Path, tmp_path: Path) -> None:
    whole = next(installed.parent.parent.glob("dist/*.whl"))
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / whole.name, "w") as target:
        for name in source.namelist():
            if name != "pipeline/workspace/templates/gitignore":
                target.writestr(name, source.read(name))
        target.writestr("tests/test_api.py", "")
    reported = ["pipeline/workspace/templates/gitignore: missing", "tests/test_api.py: is not part of the package"]
    assert release.check_wheel(tmp_path / whole.name) == reported


def test_the_wheel_names_every_extra_with_what_it_needs(installed: Path) -> None:
    wheel = next(installed.parent.parent.glob("dist/*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(about.get_all("Provides-Extra")) == set(declared)
    for extra, lines in declared.items():
        given = [r for r in map(Requirement, about.get_all("Requires-Dist")) if f'extra == "{extra}"' in str(r.marker)]
        wanted = list(map(Requirement, lines))
        assert {(r.name, str(r.specifier)) for r in given} == {(r.name, str(r.specifier)) for r in wanted}
        assert {part for r in given if r.name == about["Name"] for part in r.extras} <= set(declared)


def test_photographs_are_labelled_and_shown_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = _run(installed, tmp_path, "python", "-c", "import hmsa_core, pipeline; print(hmsa_core.__file__)")
    assert Path(where).is_relative_to(installed.parent), "the checkout's code was used"
    assert re.search(r"\d+\.\d+\.\d+", _run(installed, tmp_path, "autolabel", "--version"))
    (tmp_path / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / "photographs" / f"{name}.png")
    save_model(tmp_path / "teacher")
    label = ["label", "--images", "photographs", "--checkpoint", "teacher", "--out", "labels"]
    _run(installed, tmp_path, "autolabel", *label)
    assert LabelStore.open(tmp_path / "labels").names() == ["a", "b", "c"]
    command = [installed / "autolabel", "serve", "labels", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=_environment(installed), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as page:
        assert page.stdout is not None
        try:
            reported = next(line for line in page.stdout if "http://127.0.0.1" in line)
            address = re.search(r"http://127\.0\.0\.1:\d+\S*", reported)
            assert address is not None, reported
            with urllib.request.urlopen(address[0], timeout=30) as answer:
                assert b"<html" in answer.read()
        finally:
            page.terminate()


def test_a_workspace_starts_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    _run(installed, tmp_path, "autolabel", "init", "work", "--profile", "cityscapes")
    assert "teacher_train" in _run(installed, tmp_path / "work", "autolabel", "config", "show")
    assert "prepare" in (tmp_path / "work/dvc.yaml").read_text()
    done = _ended(installed, tmp_path, "autolabel", "init", "streets", "--profile", "tiny")
    assert done.returncode != 0
    assert "the street generator is not part of the installed package" in done.stderr


def test_the_container_is_built_from_files_and_targets_that_exist(tmp_path: Path) -> None:
    lines = (REPO / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY") for part in line.split()[2:-1]]
    assert copied
    let_in = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    assert all((REPO / name).exists() for name in copied)
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    used = re.findall(r"^RUN .*?make ([a-z-]+)", "\n".join(lines), re.MULTILINE)
    assert used
    assert set(used) <= targets
