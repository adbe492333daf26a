"""prepare: index the data sets, check every file, find class centroids; one small index per role.

Checked results stay in `work/prepare/<key>/`; files with a known digest are not decoded again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hmsa_core import taxonomy
from hmsa_core.config import SamplingConfig
from hmsa_core.data import prepare
from hmsa_core.data.index import ROLES, Index, read_quarantine
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.walk import walk
from hmsa_core.io.engine import Engine
from hmsa_core.io.errors import ConfigError, InputError, did_you_mean
from hmsa_core.io.trees import publish_tree
from hmsa_core.leaks import find_leaks, possible_leaks
from hmsa_core.lineage import learned
from hmsa_core.runtime.progress import Progress
from hmsa_core.taxonomy import ClassTable
from pipeline.jobs.support import INDEX, warn, write_metrics
from pipeline.report import plots
from pipeline.workspace import keys
from pipeline.workspace.named_files import check_roots
from pipeline.workspace.params import Params
from pipeline.workspace.table import VERSIONS
from pipeline.workspace.workspace import Workspace

STAGE = "prepare"
_NAMED = 3  # left-out files that the log names
_LOG = logging.getLogger(__name__)


def disk_estimate(ws: Workspace) -> int:  # noqa: ARG001 - the same for every stage
    """Bytes: an index row takes about half a kilobyte, centroids some more."""
    return 64 << 20


def run(ws: Workspace) -> None:
    """Build the indexes and publish them."""
    params = ws.params
    material = {
        "version": VERSIONS[STAGE],
        "data": params.data.model_dump(mode="json"),
        "sampling": [_grid(params.teacher_train.sampling), _grid(params.teacher_pretrain.sampling)],
    }
    work = keys.open_work(ws.work(STAGE), "index", material)
    out = work / "index"
    check_roots(ws)
    for name in ws.roots:
        _warn(_linked(ws.source(name)))
        _warn(_outside(ws.source(name)))
    target = _build(ws, params.data.target, params.data.roles, out, params.teacher_train.sampling)
    if params.data.pretrain is None:
        note = "no pretraining set is given (data.pretrain): nothing to pretrain"
        pretrain = prepare.write_empty(out, "pretrain", taxonomy.mapillary(), note)
    else:
        learning = _all_learn(params.data.pretrain)
        pretrain = _build(ws, params.data.pretrain, learning, out, params.teacher_pretrain.sampling)
    index = Index.load(out / "target.parquet")
    _check_class_names(ws.params, index.classes)
    if params.data.target.has_labels and not index.select(roles=("learn",), kinds=("fine",)):
        source = ws.source("target")
        raise InputError(
            f"{STAGE}: no image with a fine label has role learn: the teacher has nothing to train on",
            hint=f"label maps named {source.label_name} belong in {ws.roots['target'] / source.labels}"
            if source.kind == "plain"
            else "name splits with fine labels in data.roles.learn_splits, and fewer places in calibrate and report",
        )
    if params.data.target.has_labels:
        _warn_of_later_stages(ws, index, target)
    _write_roles(index, out)
    publish_tree(out, ws.path(INDEX))
    write_metrics(ws, STAGE, {"target": _figures(target), "pretrain": _figures(pretrain)})
    _plot(ws.path("plots/prepare-classes.png"), target)
    for summary in (target, pretrain) if params.data.pretrain else (target,):
        _tell(ws, summary)


def _warn_of_later_stages(ws: Workspace, index: Index, target: prepare.Summary) -> None:
    """Warn before the trainings, not after."""
    source = ws.source("target")
    _warn(_for_want_of_images(ws.params, source.kind, index))
    _warn(_used_for_nothing(ws.params, source, index))
    if unseen := [name for name, tiles in target.centroids.items() if not tiles]:
        _warn([f"no label of role learn shows {', '.join(unseen)}: no network can learn that"])
    _warn(_leaks(ws.params, index))


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        warn(STAGE, text)


def _check_class_names(params: Params, classes: ClassTable) -> None:
    """Refuse a class name that no class has: after the trainings a later stage would ignore it, or stop."""
    known = {name.lower() for name in classes.classes}
    rules, gate = params.pseudo_label.merge.rules, params.evaluate.gate
    for key, names in (
        ("calibrate.overrides", list(params.calibrate.overrides)),
        ("pseudo_label.merge.rules", [name for rule in rules for name in (rule.human, rule.teacher)]),
        ("evaluate.gate.class_allowances", list(gate.class_allowances)),
        ("evaluate.gate.veto_recall", list(gate.named_veto)),
    ):
        for name in names:
            if name.lower() not in known:
                listed = f"the classes are: {', '.join(classes.classes)}"
                hint = did_you_mean(name, classes.classes, listed, cutoff=0.6)
                raise ConfigError(f"params.yaml: {key}: no class is called {name!r}; {hint}")


def _role_from(kind: str, role: str) -> str:
    """Where images of a data set of this kind get the role."""
    if kind == "plain":
        share = f"raise data.target.deal.{role}, or label images of more places"
        return "add images without labels" if role == "unlabelled" else share
    if kind == "camvid":
        return "list such images in splits.json"
    return "name splits or cities in data.roles" if role == "unlabelled" else f"name cities in data.roles.{role}"


def _for_want_of_images(params: Params, kind: str, index: Index) -> Iterator[str]:
    """Warnings about later stages that will refuse, or have nothing to do, because images of some role are missing."""
    images = index.select(roles=("calibrate",), kinds=("fine",))
    nobody, add_some = "no image with a fine label has role calibrate", _role_from(kind, "calibrate")
    for stage in ("teacher_train", "student_train"):
        every = getattr(params, stage).validate_every
        if every and not images:
            message = f"{stage}.validate_every is {every}, but {nobody}: that training will stop"
            yield f"{message}; set it to 0, or {add_some}"
    if not images and params.pseudo_label.is_measured:
        yield (
            f"pseudo_label.threshold is {params.pseudo_label.threshold}, but {nobody}: pseudo-label will stop; "
            f"{add_some}, or give a number or a policy file"
        )
    blocks = len({sample.block for sample in images})
    if images and params.pseudo_label.threshold == "policy" and blocks < params.calibrate.min_blocks:
        yield (
            f"{blocks} block(s) calibrate, calibrate.min_blocks is {params.calibrate.min_blocks}: no class gets a "
            "threshold of its own, and what gets none is ignored everywhere; let more calibrate, choose smaller "
            "blocks (data.target.block), lower calibrate.min_blocks (at least 3), or set pseudo_label.threshold to "
            "teach or a number"
        )
    if images and params.calibrate.region == "outside_coarse" and not any(sample.coarse for sample in images):
        yield (
            f"calibrate.region is outside_coarse, but none of the {len(images)} images of role calibrate has a "
            "coarse label: calibrate will stop; set calibrate.region to all"
        )
    if not index.select(roles=("report",), kinds=("fine",)):
        yield (
            "no image with a fine label has role report: nothing will be judged, the gate has nothing to go by; "
            + _role_from(kind, "report")
        )
    if not index.select(roles=("unlabelled",)):
        yield (
            "no image has role unlabelled: auto-infer will stop, after the teacher's training; "
            + _role_from(kind, "unlabelled")
        )


def _used_for_nothing(params: Params, source: SourceSpec, index: Index) -> Iterator[str]:
    """Warnings about existing labels and folders of images that no role or split takes."""
    if source.kind in ("camvid", "plain"):  # they bring their roles
        return
    idle = [s.name for s in index.select(roles=("guard",), kinds=("coarse",))]
    if idle:
        yield (
            f"{len(idle)} images with coarse labels, first {idle[0]}, have role guard and are used for nothing: "
            "name their split in data.roles.unlabelled_splits (images of places that calibrate or report stay unused)"
        )
    fine = index.select(kinds=("fine",))
    used = {s.split for s in fine if s.role != "guard"}
    used |= {*params.data.roles.learn_splits, *params.data.roles.report_splits}
    for split, images in Counter(s.split for s in fine if s.split not in used).items():
        yield (
            f"{images} images of split {split} have fine labels and are used for nothing: name the split in "
            "data.roles.learn_splits or report_splits"
        )
    if source.kind == "folder":
        top = Path(source.root, source.images)
        if unnamed := sorted(walk(top).files.keys() - {split.strip("/") for split in source.splits or ("",)}):
            yield (
                f"{top} holds images in folders that data.target.splits does not name, and they are not used: "
                f"{', '.join(unnamed[:3])}"
            )


def _outside(source: SourceSpec) -> Iterator[str]:
    """Warnings about data outside of the data root: DVC watches the root only, and does not see changes elsewhere."""
    root = Path(source.root)
    for key in ("images", "labels", "coarse", "classes") if source.kind == "folder" else ():
        path = getattr(source, key)
        if path and not (root / path).resolve().is_relative_to(root.resolve()):
            yield (
                f"data: {key} {path} lies outside of {root}: DVC does not see changes there; after a change type "
                "`dvc repro -f prepare`"
            )


def _linked(source: SourceSpec) -> Iterator[str]:
    """Warnings about links inside a data root: DVC follows a root that is a link, but no link inside a root."""
    root = Path(source.root)
    tops = {root / folder for folder in source.folders} or {root}
    folders = (Path(folder, name) for top in tops for folder, below, _ in os.walk(top) for name in below)
    linked = sorted(folder.relative_to(root).as_posix() for folder in folders if folder.is_symlink())
    if linked:
        yield (
            f"{root} holds linked folders ({', '.join(linked[:3])}): DVC does not see changes behind them, and "
            "nothing runs again for new images or labels there; after a change type `dvc repro -f prepare`, or mount "
            "the folders instead"
        )


def _leaks(params: Params, index: Index) -> Iterator[str]:
    """Warnings about images that calibrate and evaluate will leave out, or stop for."""
    config = params.evaluate
    limits = {"max_gap": config.max_gap, "max_distance": config.max_distance}
    for stage, role, learning in (
        ("calibrate", "calibrate", ("learn",)),
        ("evaluate", "report", ("learn", "unlabelled")),
    ):
        judged = index.select(roles=(role,), kinds=("fine",))
        near = possible_leaks(judged, index.select(roles=learning), **limits)
        leaks = find_leaks(judged, learned(near, root="target", source="fine"), model="", **limits)
        if not leaks:
            continue
        few = ", ".join(f"{leak.name} of {leak.learned} ({leak.why})" for leak in leaks[:3])
        stops = len(leaks) > config.max_leaked * len(judged)
        outcome = f"stop (evaluate.max_leaked is {config.max_leaked:g})" if stops else "leave them out"
        yield (
            f"{len(leaks)} of {len(judged)} images of role {role} are near copies or neighbours of images that models "
            f"will learn from, {stage} will {outcome}: {few}; give both sides the same role in data.roles"
        )


def _tell(ws: Workspace, summary: prepare.Summary) -> None:
    """Log the images of each role and all images left out, before hours of training."""
    roles = ", ".join(f"{count} {role}" for role, count in summary.by_role.items())
    _LOG.info("%s %s: %d images: %s", STAGE, summary.root, summary.images, roles)
    if summary.refused:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.refused.items())
        table = ws.path(INDEX) / "quarantine.parquet"
        rows = [row for row in read_quarantine(table) if row.root == summary.root][:_NAMED]
        first = "; ".join(f"{row.path}: {row.detail or row.reason}" for row in rows)
        _LOG.warning("%s %s: left out: %s: %s (all are in %s)", STAGE, summary.root, reasons, first, table)
    for note in summary.all_notes():
        _LOG.info("%s %s: %s", STAGE, summary.root, note)


def _all_learn(source: SourceSpec) -> RolesSpec:
    """Roles of a pretraining set: labelled images of the named splits, or of the usual training splits, learn.

    Vistas has no city or sequence: all of its training images learn, and its validation images are not used.
    """
    named = source.splits if source.kind == "folder" else None
    return RolesSpec(learn_splits=named or ("training", "train", "all"), unlabelled_splits=())


def _grid(sampling: SamplingConfig) -> list[int]:
    return [sampling.tile, sampling.min_pixels]


def _build(ws: Workspace, source: SourceSpec, roles: RolesSpec, out: Path, sampling: SamplingConfig) -> prepare.Summary:
    located = ws.located(source, anew=True)
    bars: list[Progress] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(Progress(total, what=f"prepare {source.name}", stream=sys.stderr))
        bars[0].update(done - bars[0].done)

    try:
        return prepare.build(
            located,
            roles,
            out,
            engine=Engine(ws.params.runtime.engine, ws.params.prepare.workers),
            tile=sampling.tile,
            min_pixels=sampling.min_pixels,
            previous=out if out.exists() else None,
            progress=report,
        )
    except ConfigError as error:
        if not error.message.startswith("roles."):
            raise
        raise ConfigError(f"params.yaml: data.{error.message}", hint=error.hint) from error
    finally:
        for bar in bars:
            bar.close()


def _write_roles(index: Index, out: Path) -> None:
    for role in ROLES:
        if role != "guard":
            Index.write(out / f"{role}.parquet", index.select(roles=(role,)), index.classes, index.root)


def _figures(summary: prepare.Summary) -> dict[str, Any]:
    return {
        "images": summary.images,
        "by_role": summary.by_role,
        "by_kind": summary.by_kind,
        "refused_images": summary.refused_images,
        "refused": summary.refused,
        "cities": summary.cities,
    }


def _plot(path: Path, target: prepare.Summary) -> None:
    names = list(target.centroids)
    groups: dict[str, list[float | None]] = {"tiles": [float(target.centroids[n]) for n in names]}
    plots.bars(path, names, groups, title="Tiles of the learning images that show a class", x="tiles")
