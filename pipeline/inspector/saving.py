"""Files that the page writes: what the disk refuses is one line that names the file, and the old one stays."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmsa_core.io.atomic import is_temp, read_json
from hmsa_core.io.errors import ConfigError, HmsaError, IntegrityError, NoSpaceError, mend_of
from hmsa_core.labels.store.format import FORMAT, MANIFEST

__all__ = ["SaveError", "refuse_in_store", "saving"]


class SaveError(HmsaError):
    """A file of the page could not be written; what was there before is intact."""


@contextmanager
def saving(path: Path, *, otherwise: str = "") -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a line for the user.

    Args:
        otherwise: what else mends it.

    Raises:
        NoSpaceError: the disk is full.
        SaveError: anything else that the system says.
    """
    try:
        yield
    except OSError as error:
        # The name of a temporary file says nothing; that of a lock file which belongs to somebody else does.
        other = Path(error.filename) if isinstance(error.filename, str | Path) else path
        where = f" ({other})" if other != path and not is_temp(other.name) and other.is_file() else ""
        said = f"{path}: not saved: {error.strerror or error}{where}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(said, hint="free space, then do it again") from error
        hint = mend_of(error) or f"let the user of this server write in {path.parent}, then do it again"
        raise SaveError(said, hint=f"{hint}; or {otherwise}" if otherwise else hint) from error


def refuse_in_store(out: Path) -> None:
    """Refuse a folder in (or at) any label store: with a file that its manifest does not list it is no longer whole."""
    place = out.resolve()
    if any(_is_store(folder) for folder in (place, *place.parents)):
        raise ConfigError(
            f"{out}: lies in a label store, which holds nothing but its own files", hint="give a folder elsewhere"
        )


def _is_store(folder: Path) -> bool:
    try:
        return read_json(folder / MANIFEST).get("format") == FORMAT
    except (OSError, IntegrityError):  # none, or none that can be read
        return False
