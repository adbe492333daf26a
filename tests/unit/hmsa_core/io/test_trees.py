"""Folders that change as a whole; where that cannot be, their commit points go first and come last."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from hmsa_core.io import atomic, trees
from hmsa_core.io.trees import new_tree, publish_tree
from tests.support.faults import every_exit, every_fault
from tests.support.training import folder_bytes

ERRORS = [errno.EIO, errno.ENOSPC, errno.EACCES]
LAST = ("manifest.json",)


def fill(folder: Path, value: str, count: int) -> dict[str, bytes]:
    for i in range(count):
        atomic.write_bytes(folder / "sub" / f"shard-{i}", f"{value}{i}".encode())
    atomic.write_json(folder / "manifest.json", {"value": value, "shards": count})
    return folder_bytes(folder)


@pytest.mark.parametrize("how", ["once", "for good", "where folders cannot be swapped"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_failed_publish_leaves_the_old_tree_or_the_new(
    tmp_path: Path, error: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(other))

    swaps = how != "where folders cannot be swapped"
    if not swaps:
        monkeypatch.setattr(atomic.FileOps, "exchange", refuse)
    new = fill(tmp_path / "work", "new", 2)
    atomic.write_bytes(tmp_path / "out" / "a-name-before-the-commit-point", b"old")
    old = fill(tmp_path / "out", "old", 3)
    shutil.copytree(tmp_path / "out", tmp_path / "kept")

    def publish() -> None:
        publish_tree(tmp_path / "work", tmp_path / "out", last=LAST)

    points = 0
    for _ in every_fault(publish, error, persistent=how == "for good"):
        points += 1
        found = folder_bytes(tmp_path / "out")
        assert found in (old, new) or not (swaps or "manifest.json" in found), "a mixture has no commit point"
        assert {p.name for p in tmp_path.iterdir()} == {"work", "out", "kept"}, "something was left behind"
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / "kept", tmp_path / "out")
    assert points >= (10 if swaps else 20), "the other file system has more operations"
    assert folder_bytes(tmp_path / "out") == new


def test_a_process_that_ends_while_it_publishes_leaves_the_old_tree_or_the_new(tmp_path: Path) -> None:
    new = fill(tmp_path / "work", "new", 2)
    old = fill(tmp_path / "out", "old", 3)
    fill(tmp_path / "other", "old", 3)
    for _ in every_exit(lambda: publish_tree(tmp_path / "work", tmp_path / "out", last=LAST)):
        assert folder_bytes(tmp_path / "out") in (old, new)
        publish_tree(tmp_path / "other", tmp_path / "out", last=LAST)
        assert {p.name for p in tmp_path.iterdir()} == {"work", "out", "other"}, "what the dead writer left is gone"


def test_a_mount_point_is_published_into(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        fill(out, "old", 3)
        new = fill(tmp_path / "work", "new", 2)
        publish_tree(tmp_path / "work", out, last=LAST)
        assert folder_bytes(out) == new
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)


def test_publish_mirrors_the_source_and_shares_its_bytes(tmp_path: Path) -> None:
    source, target = tmp_path / "work", tmp_path / "out"
    atomic.write_bytes(source / "a", b"1")
    (source / ".b.1-00000000.tmp").write_bytes(b"half")
    atomic.write_bytes(target / "stale", b"2")
    for _ in range(2):
        publish_tree(source, target)
        assert os.listdir(target) == ["a"]
        assert (target / "a").stat().st_ino == (source / "a").stat().st_ino
    names = sorted(fill(source, "new", 2))
    publish_tree(source, target, only=names[1:])
    assert sorted(folder_bytes(target)) == names[1:], "only what is meant"


def test_a_new_tree_keeps_permissions_and_links_that_lead_to_it(tmp_path: Path) -> None:
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "disk" / "out").chmod(0o2775)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    with new_tree(tmp_path / "out") as folder:
        atomic.write_bytes(folder / "a", b"1")
    assert (tmp_path / "out").is_symlink()
    assert folder_bytes(tmp_path / "disk" / "out") == {"a": b"1"}
    assert stat.S_IMODE((tmp_path / "disk" / "out").stat().st_mode) == 0o2775


def test_old_results_that_nobody_may_write_any_more_are_replaced_and_block_nobody(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old", 2)
    for path in (tmp_path / "out" / "sub", tmp_path / "out"):
        path.chmod(0o555)
    for value in ("new", "newer"):
        with new_tree(tmp_path / "out") as folder:
            new = fill(folder, value, 1)
        assert folder_bytes(tmp_path / "out") == new
    assert os.listdir(tmp_path) == ["out"]


def test_an_old_tree_that_cannot_be_removed_is_reported_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path / "out", "old", 1)

    def busy(_path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(trees, "remove_tree", busy)
    with new_tree(tmp_path / "out") as folder:
        new = fill(folder, "new", 1)
    assert folder_bytes(tmp_path / "out") == new
    assert "could not be removed" in caplog.text


def test_where_nothing_may_be_made_next_to_the_target_it_is_filled_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic.FileOps.mkdir

    def only_inside(self: atomic.FileOps, path: Path) -> None:
        if path.parent == tmp_path:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        real(self, path)

    fill(tmp_path / "out", "old", 3)
    new = fill(tmp_path / "work", "new", 2)
    monkeypatch.setattr(atomic.FileOps, "mkdir", only_inside)
    publish_tree(tmp_path / "work", tmp_path / "out", last=LAST)
    assert folder_bytes(tmp_path / "out") == new
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"manifest.json", "sub"}


def test_only_what_dead_writers_of_this_target_left_is_swept(tmp_path: Path) -> None:
    ours = atomic.temp_name(tmp_path / "out").name
    digits = ours.rpartition("-")[2][:4]
    names = [
        ".out.1-00000000.tmp",
        ours,
        ".out.2.999999999-00000000.tmp",
        f".out.{os.getpid()}-{'g' * 8}.tmp",
        ".out.999999999-00000000.tmp",
        # Our process id, and not our name: another process had it before.
        ours.replace(f"-{digits}", "-0000" if digits != "0000" else "-1111"),
    ]
    for name in names:
        (tmp_path / name).mkdir()
    with new_tree(tmp_path / "out"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"out", *names[:4]}


def test_of_two_that_publish_at_once_the_last_one_stays(tmp_path: Path) -> None:
    with new_tree(tmp_path / "out") as slow:
        fill(slow, "slow", 1)
        with new_tree(tmp_path / "out") as fast:
            fill(fast, "fast", 2)
        (tmp_path / "out").rename(tmp_path / "seen")
        real = atomic.FileOps.rename

        def just_then(self: atomic.FileOps, source: Path, target: Path) -> None:
            if source == slow:
                (tmp_path / "seen").rename(target)
            real(self, source, target)

        patch = pytest.MonkeyPatch()
        patch.setattr(atomic.FileOps, "rename", just_then)
    patch.undo()
    assert folder_bytes(tmp_path / "out")["manifest.json"].count(b"slow") == 1
    assert os.listdir(tmp_path) == ["out"]


def test_a_failure_inside_the_block_changes_nothing(tmp_path: Path) -> None:
    old = fill(tmp_path / "out", "old", 1)

    def fail() -> None:
        with new_tree(tmp_path / "out") as folder:
            atomic.write_bytes(folder / "a", b"1")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert folder_bytes(tmp_path / "out") == old
    assert os.listdir(tmp_path) == ["out"]
