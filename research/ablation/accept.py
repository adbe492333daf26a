"""Keep cells although their code changed: somebody checked that the result did not, and says how."""

from __future__ import annotations

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.workspace import Workspace
from research.ablation.code import changed_files
from research.ablation.run import Pending, Request, pending

__all__ = ["accept"]


def accept(ws: Workspace, request: Request, reason: str) -> int:
    """Give the asked-for cells the key of the code in use; the reason and the changed files stay in them.

    Settings may only have grown (a new option at its default); a changed value makes another cell.

    Returns:
        How many cells were accepted.

    Raises:
        ConfigError: no reason, or a cell whose settings changed.
    """
    if not reason.strip():
        raise ConfigError("--accept needs the reason: how it was checked that the result did not change")
    cells = [c for c in pending(ws, request) if c.state.name in ("code", "settings")]
    for cell in cells:
        changed = [d for d in cell.state.differs if cell.state.name == "settings" and not d.startswith("+")]
        if changed:
            raise ConfigError(
                f"{cell.row.name} seed {cell.seed}: {changed[0]} has another value: that is another cell",
                hint="run it, or choose rows with --rows",
            )
    for cell in cells:
        _rekey(cell, reason.strip())
    return len(cells)


def _rekey(cell: Pending, reason: str) -> None:
    old = cell.state.cell
    if old is None:
        raise AssertionError("a cell with another key exists")
    # New settings hide the files that changed along with them; somebody vouched for both.
    files = changed_files(old.record["code"], cell.material.code)
    differs = list(dict.fromkeys([*cell.state.differs, *files]))
    code = {name: digest for name, digest in old.record["code"].items() if name in files}
    note = {"reason": reason, "from_key": old.record["key"], "differs": differs, "from_code": code}
    atomic.write_json(
        old.path,
        old.record
        | {
            "key": cell.material.key,
            "settings": cell.material.settings,
            "code": cell.material.code,
            "settings_digest": cell.material.settings_digest,
            "accepted": [*old.record.get("accepted", []), note],
        },
    )
