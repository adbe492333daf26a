"""Files that were written once open with today's code and read the same; another version is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hmsa_core.io import sealed
from hmsa_core.io.errors import HmsaError
from tests.stored.formats import ARCHIVE, READERS, unpack, write


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    unpack(folder)
    return folder


def _named(path: Path) -> tuple[str, int]:
    """Format and version that a file names."""
    text = pq.read_metadata(path).metadata[b"hmsa"] if path.suffix == ".parquet" else path.read_bytes()
    value = json.loads(text)
    return value["format"], value["version"]


@pytest.mark.parametrize("file", READERS)
def test_what_was_written_then_reads_the_same_today(stored: Path, file: str) -> None:
    expected = json.loads((ARCHIVE.parent / "stored.json").read_text())[file]
    found = json.loads(json.dumps(READERS[file](stored)))
    if file == "model/model.json":  # floats of another machine
        assert found.pop("logits") == pytest.approx(expected.pop("logits"), abs=1e-3)
    assert found == expected


def _columns(folder: Path) -> dict[str, tuple[list[str], list[str], list[bool], list[str]]]:
    """Columns of each table: names, types, whether they may be empty, and the names of its metadata."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        schema = pq.read_schema(path)
        about = json.loads((pq.read_metadata(path).metadata or {}).get(b"hmsa", b"{}"))
        name = re.sub(r"-[0-9a-f]{16}\b", "", path.relative_to(folder).as_posix())
        found[name] = (schema.names, [str(t) for t in schema.types], [f.nullable for f in schema], sorted(about))
    return found


def test_tables_have_the_columns_that_they_had(stored: Path, tmp_path: Path) -> None:
    write(tmp_path)
    assert _columns(tmp_path) == _columns(stored)


def _as_version(path: Path, version: int) -> None:
    """The file as a program of that version might have written it: all digests fit."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        about: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"hmsa"])
        text = json.dumps(about | {"version": version})
        pq.write_table(table.replace_schema_metadata({b"hmsa": text}), path)
        return
    data = path.read_bytes()
    value = json.loads(data) | {"version": version}
    if data.startswith(b'{"digest":"'):
        del value["digest"]
        sealed.write(path, value)
    else:
        path.write_text(json.dumps(value))


@pytest.mark.parametrize("file", READERS)
def test_a_version_of_the_future_is_refused_and_the_message_says_so(tmp_path: Path, file: str) -> None:
    unpack(tmp_path)
    _as_version(tmp_path / file, 99)
    assert _named(tmp_path / file)[1] == 99
    with pytest.raises(HmsaError, match="version"):
        READERS[file](tmp_path)


def test_the_versions_that_are_written_today_are_those_that_are_stored(stored: Path, tmp_path: Path) -> None:
    write(tmp_path)
    assert [_named(tmp_path / file) for file in READERS] == [_named(stored / file) for file in READERS]
