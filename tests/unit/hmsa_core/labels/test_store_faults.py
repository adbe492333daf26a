"""Every file operation of writing a store fails once, for good, or is the last one of the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import HmsaError, NoSpaceError, StoreError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.shards import ShardWriter, plan_shards, shard_done
from hmsa_core.labels.store.writer import write_manifest
from tests.support.faults import FaultyOps
from tests.support.label_maps import maps, toy_classes
from tests.support.training import folder_bytes

PLANS = plan_shards([], [(f"i{i}", "") for i in range(3)], 2, "key")
LINEAGE = {"teacher": "t"}
CLASSES = toy_classes(2)  # few classes: the tables of statistics are what takes time


def _maps(name: str) -> tuple[np.ndarray, np.ndarray]:
    return maps(int(name[1:]), (6, 7), 2)


def _run(root: Path) -> None:
    """What a job does: write what is not acknowledged, then the manifest."""
    for plan in PLANS:
        if not shard_done(root, plan):
            with ShardWriter(root, plan, classes=CLASSES) as shard:
                for name in plan.names:
                    shard.add(name, *_maps(name))
    write_manifest(root, PLANS, LINEAGE, classes=CLASSES)


def _attempt(root: Path) -> Exception | None:
    try:
        _run(root)
    except (HmsaError, OSError) as error:
        return error
    return None


def _is_old_or_new(root: Path) -> None:
    """There is no store, or a whole one; acknowledged shards are whole."""
    try:
        store = LabelStore.open(root)
    except StoreError:
        return
    assert store.verify() == []
    for name in store.names():
        assert np.array_equal(store.read(name)[0], _maps(name)[0])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole")
    _run(root)
    return folder_bytes(root, (".lock",))


def _points() -> int:
    """Number of file operations of an undisturbed run."""
    import tempfile

    counting = FaultyOps(10**9, None)
    original, atomic.ops = atomic.ops, counting
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run(Path(folder))
    finally:
        atomic.ops = original
    return counting.count


@pytest.mark.fault
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
def test_each_failing_operation_leaves_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes], error: int, persistent: bool
) -> None:
    for n in range(1, _points() + 1):
        root = tmp_path / f"{n}"
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "ops", FaultyOps(n, error, persistent=persistent))
            outcome = _attempt(root)
            if error == errno.ENOSPC and isinstance(outcome, HmsaError):
                assert isinstance(outcome, (NoSpaceError, StoreError))
        _is_old_or_new(root)
        _run(root)
        assert folder_bytes(root, (".lock",)) == uninterrupted, n


@pytest.mark.fault
def test_a_process_that_ends_at_any_operation_is_taken_up_by_the_next(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    for n in range(1, _points() + 1):
        root = tmp_path / f"{n}"
        child = os.fork()
        if child == 0:  # os._exit at the n-th operation; nothing of pytest runs here afterwards
            atomic.ops = FaultyOps(n, None)
            try:
                _run(root)
            finally:
                os._exit(0)
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 99
        _is_old_or_new(root)
        _run(root)
        assert folder_bytes(root, (".lock",)) == uninterrupted, n
