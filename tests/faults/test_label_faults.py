"""`autolabel label` fails, or its process ends, at any file operation: the same command then makes the same store.

With folders that are swapped as a whole, and where that cannot be (a mount point, NFS): there a killed publication leaves
files without a manifest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.inference.folder import label_folder
from hmsa_core.inference.teachers import teacher
from hmsa_core.io import atomic
from pipeline.cli.main import main
from tests.support.faults import exit_at, faulty
from tests.support.inference import label_here, noise_image, save_model
from tests.support.training import folder_bytes

pytestmark = pytest.mark.fault

NEVER = 10**9
OPTIONS = ("--device", "cpu", "--threads", "1", "--images-per-shard", "2")
FAULTS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "exit": None}


@dataclass(frozen=True)
class World:
    """Images before and after some were added, and a checkpoint."""

    root: Path

    def label(self, folder: Path, *, grown: bool) -> int:
        """Run the command; the exit status."""
        images = self.root / ("after" if grown else "before") / "frames"
        paths = ["--images", images, "--checkpoint", self.root / "model", "--out", folder / "store"]
        return main(["label", *map(str, paths), *OPTIONS])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    for when, count in (("before", 2), ("after", 3)):
        (root / when / "frames").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise_image(i, 16, 24)).save(root / when / "frames" / f"{i}.png")
    save_model(root / "model", scales=[1.0], flip=False)
    return World(root)


@pytest.fixture(autouse=True)
def quick_and_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    label_here(monkeypatch)
    load, loaded = teacher.load_predictor, []

    def once(*args: object) -> object:
        loaded[:] = loaded or [load(*args)]
        return loaded[0]

    monkeypatch.setattr(teacher, "load_predictor", once)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # the command sets it for its job; gone again afterwards


@pytest.fixture(params=["new", "grown"])
def grown(request: pytest.FixtureRequest) -> bool:
    return request.param == "grown"


@pytest.fixture(params=["swapped", "file by file"])
def is_swapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "swapped":
        return True

    def refuse(_self: object, one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(other))

    monkeypatch.setattr(atomic.FileOps, "exchange", refuse)
    return False


def _state(folder: Path) -> dict[str, bytes] | None:
    return folder_bytes(folder / "store") if (folder / "store").exists() else None


def _blow(action: Callable[[], int], n: int, error: int | None) -> None:
    """Run it with the n-th operation failing, or as the process's last one."""
    if error is None:
        assert exit_at(action, n) == 99
        return
    with faulty(n, error):
        action()


def _operations(action: Callable[[], int]) -> tuple[int, int]:
    """How many there are in an undisturbed run, and how many of them before the store is published."""
    before: list[int] = []
    with faulty(NEVER, None) as ops, pytest.MonkeyPatch.context() as patch:
        publish = label_folder.publish_store
        patch.setattr(label_folder, "publish_store", lambda *args: (before.append(ops.count), publish(*args)))
        assert action() == 0
    return ops.count, before[0]


def _loop(
    world: World, tmp_path: Path, fault: str, *, grown: bool, is_swapped: bool, choose: Callable[[int, int], list[int]]
) -> None:
    old, new, folder = tmp_path / "old", tmp_path / "new", tmp_path / "now"
    old.mkdir()
    if grown:
        assert world.label(old, grown=False) == 0
    elif not is_swapped:
        (old / "store").mkdir()  # a mount point is there, and cannot be swapped
    shutil.copytree(old, new)
    total, before = _operations(lambda: world.label(new, grown=grown))
    assert 10 < before < total - 10
    for n in choose(total, before):
        shutil.copytree(old, folder)
        _blow(lambda: world.label(folder, grown=grown), n, FAULTS[fault])
        found = _state(folder)
        assert found in (_state(old), _state(new)) or not (is_swapped or "manifest.json" in found), n
        assert world.label(folder, grown=grown) == 0, f"cannot be gone on with after operation {n} of {total}"
        assert _state(folder) == _state(new), f"other bytes after operation {n} of {total}"
        assert {path.name for path in folder.iterdir()} == {"store", "store.work"}, "something was left behind"
        shutil.rmtree(folder)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_command_goes_on_after_a_fault_at_any_operation(world, tmp_path, fault, grown, is_swapped, every):
    # Between them the faults, old states and file systems meet every operation of a publication and many before it.
    offset = list(FAULTS).index(fault) + 3 * grown

    def choose(total: int, before: int) -> list[int]:
        some = [*range(1 + 13 * offset, before, 78), *range(before + 1 + offset, total + 1, 6)]
        return list(range(1, total + 1)) if every else some

    _loop(world, tmp_path, fault, grown=grown, is_swapped=is_swapped, choose=choose)
