"""Every file operation of writing what must not be lost fails once, for good, or is the process's last one.

Training states: tests/unit/hmsa_core/training/test_state_store.py; single files: tests/unit/hmsa_core/io/test_atomic.py.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hmsa_core.io import atomic
from hmsa_core.io.errors import CheckpointError, HmsaError, NoSpaceError, StoreError
from hmsa_core.io.trees import new_tree
from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.review import ReviewFile
from hmsa_core.labels.store.shards import ShardWriter, plan_shards, shard_done
from hmsa_core.labels.store.writer import publish_store, write_manifest
from hmsa_core.labels.thresholds.policy import ThresholdPolicy, from_threshold
from hmsa_core.models.checkpoint import read_meta, write_checkpoint
from pipeline.workspace.registry import Registry
from tests.support.faults import every_exit, every_fault
from tests.support.label_maps import maps, toy_classes
from tests.support.training import NO_MODEL, folder_bytes

pytestmark = pytest.mark.fault

CLASSES = toy_classes(2)


@dataclass(frozen=True)
class Subject:
    """Something on disk: how its old state is made, how it is changed, and what a reader sees (None = nothing)."""

    prepare: Callable[[Path], None]
    change: Callable[[Path], None]
    read: Callable[[Path], object]


def _save_policy(threshold: float) -> Callable[[Path], None]:
    return lambda folder: from_threshold(threshold, CLASSES).save(folder / "policy.json") and None


def _review(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        review = ReviewFile(folder / "raw")
        if name not in {mark.name for mark in review.marks()}:  # whoever sees it written does not write it again
            review.add(name, "flag", region=[[0, 0], [4, 0], [4, 4]])

    return add


def _store(images: int, per_shard: int = 1) -> Callable[[Path], None]:
    plans = plan_shards([], [(f"i{i}", "") for i in range(images)], per_shard, "key")

    def write(folder: Path) -> None:
        root = folder / "store"
        for plan in plans:
            if not shard_done(root, plan):
                with ShardWriter(root, plan, classes=CLASSES) as shard:
                    for name in plan.names:
                        shard.add(name, *maps(int(name[1:]), (6, 7), 2))
        write_manifest(root, plans, {"teacher": "t"}, classes=CLASSES)

    return write


def _appended(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        store = folder / "store"
        with LabelStoreWriter(store, {"teacher": "t"}, classes=CLASSES) as writer:
            if not (store / "manifest.json").is_file() or name not in LabelStore.open(store).names():
                writer.add(name, *maps(int(name[1:]), (6, 7), 2))

    return write


def _published_first(folder: Path) -> None:
    # Two finished stores whose shards have the same file names and other labels.
    _store(1)(folder / "one")
    for name in ("i5", "i6"):
        _appended(name)(folder / "two")
    publish_store(folder / "one" / "store", folder / "store")


def _publish_second(folder: Path) -> None:
    publish_store(folder / "two" / "store", folder / "store")


def _results(value: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with new_tree(folder / "evaluation") as out:
            atomic.write_json(out / "metrics.json", {"value": value})
            atomic.write_json(out / "deeper" / "verdict.json", {"value": value})

    return write


def _read_results(folder: Path) -> object:
    found = [atomic.read_json(folder / "evaluation" / name) for name in ("metrics.json", "deeper/verdict.json")]
    assert found[0] == found[1], "one file of the old results, one of the new"
    return found


def _read_store(folder: Path) -> object:
    store = LabelStore.open(folder / "store")
    # A shard that is written, but not in the manifest yet, is told and does no harm.
    assert [problem for problem in store.verify() if problem.kind != "unlisted"] == []
    for name in store.names():
        assert np.array_equal(store.read(name)[0], maps(int(name[1:]), (6, 7), 2)[0])
    return store.names()


def _checkpoint(value: float) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        write_checkpoint(
            folder / "model", {"w": torch.full((4,), float(value))}, NO_MODEL | {"inference": None, "extra": {}}
        )

    return save


def _read_checkpoint(folder: Path) -> object:
    meta = read_meta(folder / "model")
    assert atomic.sha256_file(folder / "model" / "model.safetensors") == meta["weights_sha256"]
    return meta["weights_sha256"]


def _registered(folder: Path) -> None:
    atomic.write_json(folder / "models/current.json", {"teacher": "stage:teacher-train"})
    for value, name in enumerate(("a", "b")):
        _checkpoint(value)(folder / name)
    registry = Registry(folder)
    registry.promote(registry.register(folder / "a" / "model"))


def _promote_second(folder: Path) -> None:
    registry = Registry(folder)
    registry.promote(registry.register(folder / "b" / "model"))


def _read_current(folder: Path) -> object:
    # Which model teaches; every registered one that a reader can see is whole.
    for meta in folder.glob("models/registry/v*/model.json"):
        assert atomic.sha256_file(meta.with_name("model.safetensors")) == atomic.read_json(meta)["weights_sha256"]
    return Registry(folder).current()


SUBJECTS = {
    "policy": Subject(_save_policy(0.9), _save_policy(0.5), lambda f: ThresholdPolicy.load(f / "policy.json").digest),
    "review file": Subject(_review("a"), _review("b"), lambda f: [m.name for m in ReviewFile(f / "raw").marks()]),
    "new store": Subject(lambda folder: (folder / "store").mkdir(), _store(3, 2), _read_store),
    "manifest that grows": Subject(_store(1), _store(2), _read_store),
    "store that is appended to": Subject(_appended("i0"), _appended("i1"), _read_store),
    "store that is published over another": Subject(_published_first, _publish_second, _read_store),
    "folder of results": Subject(_results(1), _results(2), _read_results),
    "new checkpoint": Subject(lambda _: None, _checkpoint(1.0), _read_checkpoint),
    "checkpoint that is overwritten": Subject(_checkpoint(1.0), _checkpoint(2.0), _read_checkpoint),
    "promotion": Subject(_registered, _promote_second, _read_current),
}


def _seen(subject: Subject, folder: Path) -> object:
    try:
        return subject.read(folder)
    except (CheckpointError, StoreError):
        return None


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


def _loop(subject: Subject, tmp_path: Path, faults: Callable[[Callable[[], None]], Iterator[int]]) -> None:
    old, folder = tmp_path / "old", tmp_path / "now"
    old.mkdir()
    subject.prepare(old)

    def reset() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)

    shutil.copytree(old, tmp_path / "new")
    subject.change(tmp_path / "new")
    new_bytes = folder_bytes(tmp_path / "new", (".lock",))
    states = [_seen(subject, old), _seen(subject, tmp_path / "new")]
    assert states[0] != states[1]
    points = 0
    reset()
    for _ in faults(lambda: subject.change(folder)):
        points += 1
        assert _seen(subject, folder) in states
        atomic.sweep_temps(folder)
        subject.change(folder)
        assert _seen(subject, folder) == states[1]
        assert folder_bytes(folder, (".lock",)) == new_bytes, (
            "other bytes than without the fault, or something was left behind"
        )
        reset()
    assert points >= 5, "open, write, sync, rename and the folder's sync are points each"


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
def test_a_failing_operation_leaves_the_old_or_the_new_and_the_next_run_the_same_bytes(
    subject, tmp_path, error, persistent
):
    messages: list[HmsaError] = []

    def failing(action: Callable[[], None]) -> Iterator[int]:
        def remembered() -> None:
            try:
                action()
            except HmsaError as refused:
                messages.append(refused)
                raise

        return every_fault(remembered, error, persistent=persistent)

    _loop(subject, tmp_path, failing)
    allowed = (NoSpaceError, StoreError, CheckpointError) if error == errno.ENOSPC else HmsaError
    assert all(isinstance(each, allowed) for each in messages)


def test_an_exit_at_any_operation_leaves_the_old_or_the_new_and_the_next_run_the_same_bytes(subject, tmp_path):
    _loop(subject, tmp_path, every_exit)


def test_the_maps_of_the_two_stores_differ():
    assert not np.array_equal(maps(0, (6, 7), 2)[0], maps(1, (6, 7), 2)[0])
