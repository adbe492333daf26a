"""The image root of a store that lies in a workspace, so that `autolabel serve labels/raw` shows pictures at once."""

from __future__ import annotations

import os
from pathlib import Path

from hmsa_core.errors import HmsaError

__all__ = ["image_root"]


def image_root(store: str | os.PathLike[str]) -> Path | None:
    """Root of the target data set of the workspace around `store`; None outside of one or without the folder."""
    from pipeline.workspace import Workspace

    try:
        root = Workspace.find(Path(store)).roots.get("target")
    except HmsaError:  # not in a workspace, or its parameters are broken: then pictures need --images
        return None
    return root if root is not None and root.is_dir() else None
