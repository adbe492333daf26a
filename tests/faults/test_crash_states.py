"""Power is lost at any moment: whatever the disk may hold afterwards is the old or the new, and acknowledged shards stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hmsa_core.io import atomic, trees
from hmsa_core.io.errors import HmsaError, StoreError
from hmsa_core.io.trees import new_tree
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.shards import ShardWriter, plan_shards, shard_done
from hmsa_core.labels.store.writer import publish_store, write_manifest
from hmsa_core.models.checkpoint import read_meta, read_weights, write_checkpoint
from hmsa_core.training import state
from hmsa_core.training.state import StateStore
from tests.support.crashes import Recorder, legal_states
from tests.support.label_maps import maps, toy_classes
from tests.support.training import NO_MODEL, folder_bytes

pytestmark = pytest.mark.fault

CLASSES = toy_classes(2)
PLANS = plan_shards([], [(f"i{i}", "") for i in range(2)], 1, "key")


def _record(action: Callable[[Recorder], None], monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "ops", recorder)
        for module in (trees, state):
            patch.setattr(module, "remove_tree", recorder.remove_tree)
        action(recorder)
    return recorder


def test_a_file_that_is_replaced_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    root, old, new = tmp_path / "root", b"old" * 50, b"new" * 99
    root.mkdir()

    def write(recorder: Recorder) -> None:
        atomic.write_bytes(root / "deep" / "file", old)
        recorder.note("old")
        atomic.write_bytes(root / "deep" / "file", new)
        recorder.note("new")

    seen = set()
    for folder, notes, words in legal_states(_record(write, monkeypatch), root, tmp_path / "states"):
        file = folder / "deep" / "file"
        found = file.read_bytes() if file.exists() else None
        allowed = {(): {None, old}, ("old",): {old, new}, ("old", "new"): {new}}[tuple(map(str, notes))]
        assert found in allowed, words
        seen.add((len(notes), found))
        shutil.rmtree(folder)
    assert seen == {(0, None), (0, old), (1, old), (1, new), (2, new)}, "every allowed outcome occurs"


def test_the_enumeration_finds_a_writer_that_does_not_sync(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()

    def careless(recorder: Recorder) -> None:
        with recorder.open_new(root / "x.tmp") as file:
            recorder.write(file, b"data")
        recorder.rename(root / "x.tmp", root / "x")
        recorder.note("done")

    found = set()
    for folder, notes, _ in legal_states(_record(careless, monkeypatch), root, tmp_path / "states"):
        if notes:
            found.add((folder / "x").read_bytes() if (folder / "x").exists() else None)
    assert found == {None, b"", b"da", bytes(4), b"data"}


@dataclass(frozen=True)
class Folder:
    """A folder that is written several times: how (1st, 2nd, ... time), and what of it can be read (None: nothing)."""

    write: Callable[[Path, int], object]
    read: Callable[[Path], int | None]
    times: int = 2


def _write_tree(path: Path, version: int) -> None:
    with new_tree(path) as folder:
        for name in ("first", "both") if version == 1 else ("both", "deep/second"):
            atomic.write_bytes(folder / name, bytes([version]) * 40)


def _read_tree(path: Path) -> int | None:
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    versions = [{"first": b"\1" * 40, "both": b"\1" * 40}, {"both": b"\2" * 40, "deep/second": b"\2" * 40}]
    return versions.index(files) + 1 if path.exists() else None


def _read_state(path: Path) -> int | None:
    found = StateStore(path, key="k").latest()
    assert found is None or found.groups["model"]["w"].tolist() == [found.step] * 9
    return None if found is None else found.step


def _publish_store(path: Path, version: int) -> None:
    progress = path.parent / f"progress{version}"
    plans = plan_shards([], [(f"v{version}i{i}", "") for i in range(version)], 1, "key")
    for plan in plans:
        with ShardWriter(progress, plan, classes=CLASSES) as shard:
            shard.add(plan.names[0], *maps(plan.index, (6, 7), 2))
    write_manifest(progress, plans, {"teacher": "t"}, classes=CLASSES)
    publish_store(progress, path)


def _read_store(path: Path) -> int | None:
    if not path.exists():
        return None
    store = LabelStore.open(path, strict=True)
    assert store.verify() == []
    assert {name[:2] for name in store.names()} == {f"v{len(store.names())}"}
    return len(store.names())


FOLDERS = {
    "folder": Folder(_write_tree, _read_tree),
    "checkpoint": Folder(
        lambda path, version: write_checkpoint(path, {"w": torch.full((9,), float(version))}, NO_MODEL),
        lambda path: int(read_weights(path, read_meta(path))["w"][0]) if path.exists() else None,
    ),
    "training states": Folder(
        lambda path, version: StateStore(path, key="k").save(
            version, {"model": {"w": torch.full((9,), float(version))}}, {}
        ),
        _read_state,
        4,
    ),  # two are kept
    "published store": Folder(_publish_store, _read_store),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_replaced_is_the_old_or_the_new_one(tmp_path, kind, monkeypatch):
    root, subject = tmp_path / "root", FOLDERS[kind]
    root.mkdir()

    def write(recorder: Recorder) -> None:
        for version in range(1, subject.times + 1):
            subject.write(root / "it", version)
            recorder.note(version)

    seen = set()
    for folder, notes, words in legal_states(_record(write, monkeypatch), root, tmp_path / "states"):
        try:
            found = subject.read(folder / "it")
        except (HmsaError, AssertionError, ValueError) as error:
            raise AssertionError(words) from error
        done = len(notes)
        assert found in (done or None, min(done + 1, subject.times)), words
        seen.add((done, found))
        shutil.rmtree(folder)
    allowed = {(done, done or None) for done in range(subject.times + 1)}
    assert seen == allowed | {(done, done + 1) for done in range(subject.times)}, "every allowed outcome occurs"


def _write_store(root: Path, note: Callable[[object], None]) -> None:
    for plan in PLANS:
        if not shard_done(root, plan):
            with ShardWriter(root, plan, classes=CLASSES) as shard:
                shard.add(plan.names[0], *maps(plan.index, (6, 7), 2))
            note(plan)
    write_manifest(root, PLANS, {"teacher": "t"}, classes=CLASSES)
    note("manifest")


def test_no_acknowledged_shard_is_lost_and_every_state_can_be_gone_on_from(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    recorder = _record(lambda recorder: _write_store(root, recorder.note), monkeypatch)
    whole, states = folder_bytes(root, (".lock", ".tmp")), 0
    for folder, notes, words in legal_states(recorder, root, tmp_path / "states"):
        states += 1
        for plan in notes:
            if plan == "manifest":
                assert LabelStore.open(folder, strict=True).names(), words
            else:
                assert shard_done(folder, plan), words  # type: ignore[arg-type]  # notes are plans
        try:
            assert LabelStore.open(folder).verify() == [], words
        except StoreError:
            assert "manifest" not in notes, words
        _write_store(folder, lambda _: None)
        assert folder_bytes(folder, (".lock", ".tmp")) == whole, words
        shutil.rmtree(folder)
    assert states > 100
