"""Power is lost at any moment: whatever the disk may hold afterwards is the old or the new, and acknowledged shards stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hmsa_core import atomic
from hmsa_core.errors import StoreError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.shards import ShardWriter, plan_shards, shard_done, write_manifest
from tests.support.crashes import Recorder, legal_states
from tests.support.label_maps import maps, toy_classes

pytestmark = pytest.mark.fault

CLASSES = toy_classes(2)
PLANS = plan_shards([], [(f"i{i}", "") for i in range(2)], 1, "key")


def _record(action: Callable[[Recorder], None], monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "ops", recorder)
        action(recorder)
    return recorder


def test_a_file_that_is_replaced_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, old, new = tmp_path / "root", b"old" * 50, b"new" * 99
    root.mkdir()

    def write(recorder: Recorder) -> None:
        atomic.write_bytes(root / "deep" / "file", old)
        recorder.note("old")
        atomic.write_bytes(root / "deep" / "file", new)
        recorder.note("new")

    seen = set()
    for folder, notes, words in legal_states(_record(write, monkeypatch).log, root, tmp_path / "states"):
        file = folder / "deep" / "file"
        found = file.read_bytes() if file.exists() else None
        allowed = {(): {None, old}, ("old",): {old, new}, ("old", "new"): {new}}[tuple(map(str, notes))]
        assert found in allowed, words
        seen.add((len(notes), found))
        shutil.rmtree(folder)
    assert seen == {(0, None), (0, old), (1, old), (1, new), (2, new)}, "every allowed outcome occurs"


def test_the_enumeration_finds_a_writer_that_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()

    def careless(recorder: Recorder) -> None:
        with recorder.open_new(root / "x.tmp") as file:
            recorder.write(file, b"data")
        recorder.rename(root / "x.tmp", root / "x")
        recorder.note("done")

    found = set()
    for folder, notes, _ in legal_states(_record(careless, monkeypatch).log, root, tmp_path / "states"):
        if notes:
            found.add((folder / "x").read_bytes() if (folder / "x").exists() else None)
    assert found == {None, b"", b"da", bytes(4), b"data"}


def _write_store(root: Path, note: Callable[[object], None]) -> None:
    for plan in PLANS:
        if not shard_done(root, plan):
            with ShardWriter(root, plan, classes=CLASSES) as shard:
                shard.add(plan.names[0], *maps(plan.index, (6, 7), 2))
            note(plan)
    write_manifest(root, PLANS, {"teacher": "t"}, classes=CLASSES)
    note("manifest")


def _bytes(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.suffix not in (".lock", ".tmp"))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


@pytest.mark.slow
def test_no_acknowledged_shard_is_lost_and_every_state_can_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    log = _record(lambda recorder: _write_store(root, recorder.note), monkeypatch).log
    whole, states = _bytes(root), 0
    for folder, notes, words in legal_states(log, root, tmp_path / "states"):
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
        assert _bytes(folder) == whole, words
        shutil.rmtree(folder)
    assert states > 100
