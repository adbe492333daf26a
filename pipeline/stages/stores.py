"""Raw label stores of the stages: what a store is keyed by, which one goes on growing, what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmsa_core.config import InferConfig, key_material
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.errors import StoreError
from hmsa_core.labels.store.format import listed_files, read_manifest
from hmsa_core.models import read_meta
from hmsa_core.spec import InferSpec, Selection
from hmsa_core.taxonomy import ClassTable
from pipeline import keys
from pipeline.stages import VERSIONS, support
from pipeline.workspace import Workspace

__all__ = ["infer_store", "left_out"]


def infer_store(
    ws: Workspace, stage: str, job: str, config: InferConfig, checkpoint: Path, index: Path, names: tuple[str, ...]
) -> Path:
    """Label images into a raw store below `work/`, only those that it lacks; return the store's folder.

    Which images are wanted is not in the key: new ones are appended to the store of the same teacher, classes and
    settings. A store that holds images no longer wanted (or changed ones) is left, and another one begun.
    """
    listed = Index.load(index)
    wanted = {s.name: s.image_sha256 for s in listed.select(names=names)}
    classes = _classes_of(checkpoint, listed)
    support.check_classes(ws, f"{checkpoint}", classes, listed.classes)
    material = {
        "version": VERSIONS[stage],
        "config": key_material(config),
        "teacher": support.weights_of(checkpoint),
        "classes": classes.digest(),
        **support.fusion(checkpoint),
    }
    work = keys.open_work(ws.work(stage), job, material)
    held = _images_of(work / "store") | _planned(work / "plan.json")
    if any(wanted.get(name) != sha for name, sha in held.items()):
        work = keys.open_work(ws.work(stage), job, material | _begun(ws.work(stage), job, material, wanted))
        held = _images_of(work / "store")
    if held != wanted or not _is_whole(work / "store") or left_out(work / "store"):
        support.run_job(
            ws,
            InferSpec(
                work=work,
                roots=support.root_paths(ws),
                config=config,
                checkpoint=checkpoint,
                selection=Selection(index=index, names=names),
                lineage=support.provenance(stage),
            ),
        )
    return work / "store"


def _classes_of(checkpoint: Path, index: Index) -> ClassTable:
    """Classes that a checkpoint's labels get: its own, or the index's where it has none (imported weights)."""
    table = read_meta(checkpoint).get("class_table")
    return ClassTable.from_json(table) if table else index.classes


def _begun(folder: Path, job: str, material: dict[str, Any], wanted: dict[str, str]) -> dict[str, str]:
    """What tells a store from the others of the same teacher and settings: the images that it began with.

    The newest that holds only what is wanted goes on growing; without one, a store of its own begins.
    """
    taken = []
    for key in reversed(keys.used(folder, job)):
        described = atomic.read_json(folder / key / "key.json")
        same = {name: value for name, value in described.items() if name not in ("job", "images")} == material
        if same and "images" in described:
            held = _images_of(folder / key / "store") | _planned(folder / key / "plan.json")
            if all(wanted.get(name) == sha for name, sha in held.items()):
                return {"images": str(described["images"])}
            taken.append(described["images"])
    images = atomic.digest(sorted(wanted.items()))
    while images in taken:  # it began with these, and has grown since
        images = atomic.digest(images)
    return {"images": images}


def _images_of(store: Path) -> dict[str, str]:
    """Images that a finished store accounts for: labelled, or left out with a reason."""
    if not (store / "manifest.json").exists():
        return {}
    images: dict[str, str] = {}
    for shard in read_manifest(store)["shards"]:
        images |= {str(name): str(sha) for name, sha in shard["images"]}
    return images


def left_out(store: Path) -> dict[str, str]:
    """{name: reason} of images that a finished store could not label; the job looks whether they were restored."""
    if not (store / "manifest.json").exists():
        return {}
    return {str(row["name"]): str(row["reason"]) for s in read_manifest(store)["shards"] for row in s["skipped"]}


def _planned(plan: Path) -> dict[str, str]:
    if not plan.exists():
        return {}
    shards = atomic.read_json(plan).get("shards", [])
    return {n: h for s in shards for n, h in zip(s["names"], s["image_sha256s"], strict=True)}


def _is_whole(store: Path) -> bool:
    """Whether all files of a finished store are there (their digests are checked when they are read)."""
    try:
        return all((store / file).exists() for file in listed_files(read_manifest(store)))
    except StoreError:
        return False
