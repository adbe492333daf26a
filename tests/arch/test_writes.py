"""Nothing of ours writes a file but through `hmsa_core.io.atomic`: no half file, and none that is published is opened again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("hmsa_core", "pipeline") for path in sorted((REPO / package).rglob("*.py"))]
# Where a file is written, or opened for writing, in another way: what, and why that loses nothing.
MAY_WRITE = {
    "hmsa_core/io/atomic.py": "this is it",
    "hmsa_core/runtime/progress.py": "the log grows by lines; a torn last line is dropped",
    "hmsa_core/io/locks.py": "a lock file names its owner, for people",
    "pipeline/cli/main.py": "/dev/null",
    "hmsa_core/io/remote.py": "links, in a folder that is renamed into its place as a whole",
    "examples/streets/files.py": "a folder that is renamed into its place as a whole",
    "pipeline/night/prefect_services.py": "what the server and the worker say",
}
# Names of buffers, and of files of `open_atomic`.
IN_MEMORY = {"buffer", "data", "stream", "self._stream", "file", "out"}
WHOLE = {"imwrite", "save_file", "to_csv", "to_parquet", "tofile", "copyfile", "copy", "copy2", "copytree", "move"}
INTO = {"save": 0, "savez": 0, "savez_compressed": 0, "savefig": 0, "dump": 1, "write_table": 1, "ParquetWriter": 0}


def _writes(source: str) -> Iterator[str]:
    """Calls that write or rename a file by themselves, as `line: call`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_write(node):
            yield f"{node.lineno}: {ast.unparse(node)[:80]}"


def _is_write(call: ast.Call) -> bool:
    name, owner = _name(call.func)
    if name == "open":
        return (owner == "os" and "O_RDONLY" not in ast.unparse(call)) or _mode(call, is_method=bool(owner)) != ""
    if name in ("write_text", "write_bytes"):
        return owner not in ("", "atomic")  # `write_text(...)` alone is that of hmsa_core.io.atomic
    if name in ("rename", "replace", "symlink", "link", "symlink_to", "hardlink_to"):
        return owner == "os" or (name != "replace" and owner != "atomic.ops")
    if name in WHOLE:
        return name in ("imwrite", "save_file") or owner in ("shutil", "cv2") or name.startswith("to")
    if name in INTO and owner not in ("", "self"):
        is_picture = name == "save" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
        is_ours = (name == "save" and not is_picture and owner not in ("torch", "np")) or owner in (
            "sealed",
            "self._writer",
        )
        return not is_ours and not _is_memory(call, INTO[name])
    return False


def _name(function: ast.expr) -> tuple[str, str]:
    if isinstance(function, ast.Attribute):
        return function.attr, ast.unparse(function.value)
    return (function.id if isinstance(function, ast.Name) else ""), ""


def _mode(call: ast.Call, *, is_method: bool) -> str:
    """The mode when it is one that writes."""
    given = [k.value for k in call.keywords if k.arg == "mode"] + call.args[0 if is_method else 1 :][:1]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else ""
    return mode if isinstance(mode, str) and len(mode) <= 3 and set(mode) & set("wax+") else ""


def _is_memory(call: ast.Call, position: int) -> bool:
    given = call.args[position] if len(call.args) > position else None
    return isinstance(given, ast.NamedExpr) or (given is not None and ast.unparse(given) in IN_MEMORY)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(REPO).as_posix())
def test_files_are_written_through_atomic_alone(path: Path) -> None:
    if path.relative_to(REPO).as_posix() not in MAY_WRITE:
        assert list(_writes(path.read_text("utf-8"))) == []


def test_the_exceptions_are_still_needed() -> None:
    assert all(list(_writes((REPO / name).read_text("utf-8"))) for name in MAY_WRITE)


FOUND = ["open(p, 'w')", "p.open('ab')", "p.open(mode='r+b')", "os.open(p, os.O_RDWR)", "json.dump(v, p.open())"]
FOUND += ["p.write_text('x')", "p.write_bytes(b'')", "p.rename(q)", "os.replace(p, q)", "os.link(p, q)"]
FOUND += ["np.savez(p, a=a)", "np.save(p, a)", "torch.save(m, p)", "save_file(t, p)", "pq.write_table(t, p)"]
FOUND += [
    "cv2.imwrite(str(p), a)",
    "image.save(p, 'PNG')",
    "figure.savefig(p)",
    "shutil.copy(p, q)",
    "shutil.move(p, q)",
]
FINE = ["open(p)", "p.open('rb')", "LabelStore.open(p, strict=True)", "os.open(p, os.O_RDONLY)", "policy.save(p)"]
FINE += ["atomic.write_text(p, 'x')", "write_bytes(p, b'')", "atomic.ops.rename(p, q)", "text.replace('w', 'a')"]
FINE += ["np.savez(buffer, a=a)", "image.save(stream, 'PNG')"]


def test_such_a_line_would_be_found_and_others_are_fine() -> None:
    assert [line for line in FOUND if not list(_writes(line))] == []
    assert [line for line in FINE if list(_writes(line))] == []
