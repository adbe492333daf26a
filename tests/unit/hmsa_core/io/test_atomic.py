"""Atomic files: whatever operation fails, the old or the new state is there, never a mix."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io import atomic, records
from hmsa_core.io.errors import IntegrityError, NoSpaceError, translate_os_error
from tests.support.faults import every_exit, every_fault

ERRORS = [errno.EIO, errno.ENOSPC, errno.EACCES]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_a_failed_write_leaves_the_old_or_the_new_file(tmp_path: Path, error: int, persistent: bool) -> None:
    target = tmp_path / "deep" / "file.bin"
    points = 0

    def reset() -> None:
        shutil.rmtree(target.parent, ignore_errors=True)
        atomic.write_bytes(target, b"old" * 1000)

    reset()
    for _ in every_fault(lambda: atomic.write_bytes(target, b"new" * 2000) and None, error, persistent=persistent):
        points += 1
        assert target.read_bytes() in (b"old" * 1000, b"new" * 2000)
        assert os.listdir(target.parent) == ["file.bin"], "a temporary file was left behind"
        reset()
    assert points >= 5, "open, write, fsync, rename and folder sync must each be a fault point"
    assert target.read_bytes() == b"new" * 2000


def test_a_process_that_ends_at_any_operation_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    atomic.write_bytes(target, b"old")
    for _ in every_exit(lambda: atomic.write_bytes(target, b"new" * 99) and None):
        assert target.read_bytes() in (b"old", b"new" * 99)
        atomic.write_bytes(target, b"old")
    atomic.sweep_temps(tmp_path)
    assert os.listdir(tmp_path) == ["file.bin"], "the sweep removes what dead writers left"


def test_a_living_writers_temporary_file_is_not_swept(tmp_path: Path) -> None:
    file = atomic.AtomicFile(tmp_path / "x")
    file.write(b"partial")
    assert atomic.sweep_temps(tmp_path) == []
    file.commit()
    assert (tmp_path / "x").read_bytes() == b"partial"


@pytest.mark.parametrize("reaped", ["not yet", "between the two looks at it", "before"])
def test_a_killed_writers_temporary_file_is_swept_whenever_its_parent_takes_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: str
) -> None:
    with subprocess.Popen(["sleep", "600"]) as writer:
        (tmp_path / f".x.{writer.pid}-00000000.tmp").write_bytes(b"partial")
        assert atomic.sweep_temps(tmp_path) == []
        writer.kill()
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # dead, a zombie
        if reaped == "before":
            writer.wait()
        elif reaped != "not yet":
            read = Path.read_text
            monkeypatch.setattr(Path, "read_text", lambda *a, **k: (writer.wait(), read(*a, **k))[1])
        assert len(atomic.sweep_temps(tmp_path)) == 1
        assert not os.listdir(tmp_path)


def test_an_atomic_file_is_an_output_that_cannot_be_moved_in(tmp_path: Path) -> None:
    file = atomic.AtomicFile(tmp_path / "new" / "a")
    assert (file.writable(), file.readable(), file.seekable(), file.closed) == (True, False, False, False)
    assert [file.write(part) for part in (b"ab", bytearray(b"c"), memoryview(b"de"))] == [2, 1, 2]
    file.flush()
    file.close()  # writers call it; only commit publishes
    assert file.tell() == 5
    assert not file.path.exists()
    assert file.commit() == hashlib.sha256(b"abcde").hexdigest() == file.sha256
    assert file.closed
    file.flush()
    assert file.path.read_bytes() == b"abcde"
    assert atomic.sha256_file(file.path) == atomic.sha256_bytes(b"abcde") == file.sha256


def test_an_aborted_file_leaves_nothing_and_can_be_aborted_twice(tmp_path: Path) -> None:
    file = atomic.AtomicFile(tmp_path / "a")
    file.write(b"half")
    for _ in range(2):
        file.abort()
        assert list(tmp_path.iterdir()) == []
        assert file.closed


@pytest.mark.parametrize("error", [None, errno.EXDEV])
def test_of_a_symbolic_link_the_file_is_published_and_outlives_dvcs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    cached, source, target = tmp_path / "cache/ab/cd", tmp_path / "models/m.bin", tmp_path / "registry/m.bin"
    atomic.write_bytes(cached, b"weights")
    source.parent.mkdir()
    source.symlink_to(cached)
    if error:
        monkeypatch.setattr(atomic.FileOps, "link", lambda *_: (_ for _ in ()).throw(OSError(error, "")))
    atomic.publish_file(source, target)
    cached.unlink()  # dvc gc --workspace
    assert not target.is_symlink()
    assert target.read_bytes() == b"weights"
    assert os.listdir(target.parent) == ["m.bin"]


def test_torn_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"a": ')
    with pytest.raises(IntegrityError, match=r"m\.json.*not valid JSON"):
        atomic.read_json(tmp_path / "m.json")
    (tmp_path / "l.json").write_text("[1]")
    with pytest.raises(IntegrityError, match="expected a JSON object"):
        atomic.read_json(tmp_path / "l.json")


def test_json_has_sorted_keys_and_letters_as_they_are_so_that_files_and_digests_stay_what_they_were(
    tmp_path: Path,
) -> None:
    value = {"b": "M\u00fcnchen", "a": [1, 0.5, None]}
    assert atomic.canonical_json(value) == '{"a":[1,0.5,null],"b":"M\u00fcnchen"}'.encode()
    atomic.write_json(tmp_path / "x.json", value)
    assert (tmp_path / "x.json").read_text(
        "utf-8"
    ) == '{\n "a": [\n  1,\n  0.5,\n  null\n ],\n "b": "M\u00fcnchen"\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        atomic.canonical_json({"miou": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "nan.json", {"miou": float("nan")})
    assert not (tmp_path / "nan.json").exists()


def test_append_keeps_all_earlier_lines_when_it_fails(tmp_path: Path) -> None:
    log = tmp_path / "review.jsonl"
    records.append(log, {"id": 1})
    before = log.read_bytes()
    for _ in every_fault(lambda: records.append(log, {"id": 2}), errno.ENOSPC):
        assert log.read_bytes() in (before, before + b'{"id": 2}\n')
        atomic.write_bytes(log, before)
    assert log.read_bytes() == before + b'{"id": 2}\n'


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_the_key_of_a_value_does_not_depend_on_the_order_of_its_parts(value: dict[str, object]) -> None:
    assert atomic.digest(value) == atomic.digest(dict(reversed(list(value.items()))))


def test_a_full_disk_has_its_own_exit_status() -> None:
    assert translate_os_error(OSError(errno.ENOSPC, ""), "train:").message == "no space left on device: train"
    error = translate_os_error(OSError(errno.ENOSPC, "No space left on device", "/x/y"), "writing")
    assert isinstance(error, NoSpaceError)
    assert error.exit_code == 28
    assert "/x/y" in error.message
