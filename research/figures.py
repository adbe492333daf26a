"""Tidy tables of measured figures, `research/tables/NAME.parquet`: one figure a line.

Columns: table, row, seed, setting, class, metric, value, commit, machine. DuckDB and Polars read the folder as it is:
`SELECT * FROM 'research/tables/*.parquet' WHERE row = 'both - coarse'`.

Figures of one training have its seed, and `setting` says how the model was run. Figures over several seeds have the
setting "exploring" or "confirming" and no seed; next to them stands the same metric of each seed. Such figures have
the metrics NAME, NAME_low and NAME_high (a 95 % interval). A row "A - B" is the difference of two rows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from hmsa_core.io.locks import FileLock

TABLES = Path(__file__).resolve().parent / "tables"
EXPLORING, CONFIRMING = "exploring", "confirming"
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("table", _TEXT),
        ("row", _TEXT),
        ("seed", pa.int32()),
        ("setting", _TEXT),
        ("class", _TEXT),
        ("metric", _TEXT),
        ("value", pa.float64()),
        ("commit", _TEXT),
        ("machine", _TEXT),
    ]
)


@dataclass(frozen=True)
class Figure:
    """One line of a table. `seed` None: of several seeds, or of none. `name` is the class, "" for all of them."""

    table: str
    row: str
    seed: int | None
    setting: str
    name: str
    metric: str
    value: float | None
    commit: str
    machine: str


@dataclass(frozen=True)
class Made:
    """Where figures come from: twelve digits of the commit ("+" where files differ from it), and the machine."""

    commit: str
    machine: str

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Made:
        """From `pipeline.jobs.provenance.describe_run`."""
        machine = run["machine"]
        family = ", ".join(f"{k.removeprefix('cpu ')} {v}" for k, v in machine.get("family", {}).items())
        parts = [machine["processor"] + (f" ({family})" if family else ""), f"{machine['cores']} cores"]
        commit = (run["commit"] or "no git")[:12] + ("+" if run["uncommitted"] else "")
        return cls(commit, ", ".join([*parts, *machine["gpus"]]))

    def figure(
        self,
        table: str,
        row: str,
        metric: str,
        value: float | None,
        *,
        seed: int | None = None,
        setting: str = "",
        name: str = "",
    ) -> Figure:
        """One line made here."""
        return Figure(table, row, seed, setting, name, metric, value, self.commit, self.machine)


def figures(path: Path) -> list[Figure]:
    """All lines of a table; none where there is no file.

    Raises:
        InputError: the file is no such table.
    """
    if not path.exists():
        return []
    try:
        found = pq.read_table(path, schema=_SCHEMA)  # type: ignore[no-untyped-call]
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
        raise InputError(f"{path}: no table of figures ({error})", hint="restore it from git") from None
    columns = [found.column(name).to_pylist() for name in _SCHEMA.names]
    return [Figure(*values) for values in zip(*columns, strict=True)]


def replace(path: Path, new: Sequence[Figure], drop: Callable[[Figure], bool] = lambda _: False) -> None:
    """Write a table without the lines that `drop` names and with the new ones at its end, in one step.

    Runs in several workspaces may write to one table: a lock next to it lets one after the other do so.
    """
    atomic.make_folder(path.parent)
    with FileLock(path.parent / ".lock", what=f"the tables in {path.parent}", wait_s=60):
        kept = [one for one in figures(path) if not drop(one)]
        atomic.write_bytes(path, _bytes([*kept, *new]))


def _bytes(lines: Sequence[Figure]) -> bytes:
    columns = zip(*(astuple(line) for line in lines), strict=True) if lines else ([] for _ in fields(Figure))
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    buffer = io.BytesIO()
    made = pa.Table.from_arrays(arrays, schema=_SCHEMA)
    pq.write_table(made, buffer, compression="zstd", compression_level=19)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
