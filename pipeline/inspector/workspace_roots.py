"""What the workspace around a store knows: its pictures and its calibration, so that neither has to be named."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from hmsa_core.io.errors import HmsaError

__all__ = ["calibration_policy", "image_root", "not_over", "policy_setting", "policy_target"]


def image_root(store: str | os.PathLike[str]) -> Path | None:
    """Root of the target data set of the workspace around `store`; None outside of one or without the folder."""
    from pipeline.workspace import Workspace

    try:
        root = Workspace.find(Path(store)).roots.get("target")
    except HmsaError:  # not in a workspace, or its parameters are broken: then pictures need --images
        return None
    return root if root is not None and root.is_dir() else None


def calibration_policy(store: str | os.PathLike[str]) -> tuple[Path | None, str]:
    """The measured policy of the workspace around a raw store, or None and why it says nothing about this store.

    The reason is empty where there is no workspace or no calibration yet: nothing was expected then.
    """
    from hmsa_core.labels.store.format import read_manifest
    from hmsa_core.labels.thresholds.policy import ThresholdPolicy
    from hmsa_core.taxonomy import ClassTable
    from pipeline.workspace import Workspace

    manifest = read_manifest(Path(store))
    try:
        path = Workspace.find(Path(store)).path("calibration/policy.json")
    except HmsaError:  # not in a workspace
        return None, ""
    if manifest["kind"] != "raw" or not path.is_file():
        return None, ""
    try:
        policy = ThresholdPolicy.load(path)
        policy.check(manifest["lineage"], ClassTable.from_json(manifest["classes"]), where=str(store))
    except HmsaError as error:
        return None, f"{path}: {error.message}"
    return path, ""


def policy_target(store: str | os.PathLike[str], start: str | os.PathLike[str] | None = None) -> Path | None:
    """Where the policy of a raw store of a workspace is saved: in the folder that DVC watches; None outside of one."""
    from pipeline.workspace import Workspace

    try:
        folder = Workspace.find(Path(store)).path("policies")
    except HmsaError:  # not in a workspace
        return None
    return not_over(folder / f"{Path(store).resolve().name}.json", start)


def not_over(target: Path, start: str | os.PathLike[str] | None) -> Path:
    """`target`, or the first free of NAME-2.json, NAME-3.json, ... where it is the policy that is started from.

    The page goes on from a saved policy as from a measured one: it is still there to go back to.
    """
    if start is None or target.resolve() != Path(start).resolve():
        return target
    return next(p for n in itertools.count(2) if not (p := target.with_name(f"{target.stem}-{n}.json")).exists())


def policy_setting(store: str | os.PathLike[str], policy: Path) -> str:
    """What `pseudo_label.threshold` is set to for a saved policy: its path from the workspace, if it lies in one."""
    from pipeline.workspace import Workspace

    path = policy.resolve()
    try:
        root = Workspace.find(Path(store)).root.resolve()
    except HmsaError:  # not in a workspace
        return str(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
