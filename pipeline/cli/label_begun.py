"""What `autolabel label` goes on from: whose folder the store's is, how it was begun, which images it knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from hmsa_core.io.errors import ConfigError, InputError

__all__ = ["begun_with", "changes", "check_begun", "check_target", "is_free"]

_RECORD = "options.json"  # in the work folder: what later runs must not change, and the job's own key leaves out


def check_target(out: Path, work: Path) -> None:
    """Publishing removes what does not belong to the store: never touch a folder that is not one of ours."""
    if not out.exists():
        return
    is_store = (out / "manifest.json").is_file()
    if not is_store and not (out.is_dir() and _is_empty_or_half_published(out, work)):
        raise ConfigError(f"--out {out}: exists and is no label store", hint="give a folder that does not exist yet")
    if is_store and not (work / "plan.json").is_file():
        raise ConfigError(
            f"--out {out}: holds a label store that was not made here ({work.name} is missing)",
            hint="give another folder",
        )


def _is_empty_or_half_published(out: Path, work: Path) -> bool:
    """Whether nothing is lost when the store of `work` replaces a folder that has no manifest.

    Where folders cannot be swapped (a mount point, NFS), files are published one by one without a manifest until the
    last: a run that is killed then leaves some. They are told by their names, so that a folder of photographs
    that took the place of a deleted store is not taken for one.
    """
    from hmsa_core.labels.store.format import MANIFEST

    # The manifest of the work folder is written before anything is published, and never removed.
    return is_free(out, for_parts=(work / "store" / MANIFEST).is_file())


def is_free(folder: Path, *, for_parts: bool) -> bool:
    """Whether a folder is empty, or (`for_parts`) holds nothing but parts of a store that was never finished."""
    from hmsa_core.io.atomic import is_temp
    from hmsa_core.labels.store.format import LOCKS, RECEIPTS, SIDECAR, STATISTICS

    # A file system that was just made has a folder of its own at its top.
    content = [name for p in folder.rglob("*") if (name := p.relative_to(folder).as_posix()) != "lost+found"]
    statistics = "|".join(STATISTICS)
    ours = re.compile(
        rf"shard-\d+\.parquet|{RECEIPTS}(/shard-\d+\.json)?|{re.escape(LOCKS)}(/[\w.-]+\.lock)?"
        rf"|{SIDECAR}(/(shard-\d+|({statistics})-[0-9a-f]+)\.parquet)?"
    )
    return all(for_parts and (ours.fullmatch(name) or is_temp(PurePath(name).name)) for name in content)


def begun_with(work: Path) -> dict[str, Any]:
    """The options that the store's first labels were made with; empty if there are none yet."""
    from hmsa_core.io.atomic import read_json

    if not (work / "plan.json").is_file():
        return {}
    # What the record of an older store does not name is in the last job's settings.
    names, spec = work / "names.json", work / "spec.json"
    begun = {"names": read_json(names)["names"] if names.is_file() else "stem"}
    if spec.is_file():
        config = read_json(spec)["config"]
        begun |= {"threads": config["runtime"]["threads"], "images_per_shard": config["images_per_shard"]}
    return begun | (read_json(work / _RECORD) if (work / _RECORD).is_file() else {})


def check_begun(work: Path, options: dict[str, Any]) -> None:
    """Refuse what would mix two ways in one store.

    Images named in another way would come in twice. Other numbers of threads sum in another order: the store would
    depend on where a run was interrupted, and its lineage would name the last number alone, as of images in a shard.
    """
    from hmsa_core.io.atomic import write_json

    begun = options | begun_with(work)
    if options["names"] != begun["names"]:
        raise ConfigError(
            f"--names {options['names']}: the images of this store are called by their {begun['names']}",
            hint=f"give --names {begun['names']}, or another --out",
        )
    for name in ("threads", "images_per_shard"):
        if options[name] != begun[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag} {options[name]}: this store was begun with {flag} {begun[name]}",
                hint=f"leave {flag} out, or give another --out",
            )
    write_json(work / _RECORD, begun)


def changes(work: Path, images: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Names of the store's images that have other bytes now, and of those that are gone; both sorted.

    Args:
        work: the store's work folder.
        images: {name: SHA-256} of the images that are there now.

    Raises:
        InputError: too many changed for a mistake: names that are used again, of other pictures.
    """
    from hmsa_core.inference.infer import MAX_SKIPPED
    from hmsa_core.io.atomic import read_json

    if not (work / "plan.json").is_file():
        return [], []
    shards = read_json(work / "plan.json")["shards"]
    known = {n: h for shard in shards for n, h in zip(shard["names"], shard["image_sha256s"], strict=True)}
    changed = sorted(name for name, sha256 in known.items() if images.get(name, sha256) != sha256)
    if len(changed) > max(1, MAX_SKIPPED * len(images)):
        raise InputError(
            f"{len(changed)} of {len(images)} images have changed since they were labelled, {changed[0]!r} first",
            hint="give new pictures new names, or label into a new store",
        )
    return changed, sorted(known.keys() - images.keys())
