"""pseudo-label: thresholds, human coarse labels, camera masks and reviews turn raw labels into training labels.

No model runs here: another threshold or target precision costs seconds.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.engine import Engine
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.finalise import CentroidSettings, Recipe, finalise, measured_masks, read_mask
from hmsa_core.labels.merge import MergeRules, measure_rules
from hmsa_core.labels.review import Labels, Mark, ReviewFile, labels_id, reviewed
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.store.writer import publish_store
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.shift import shift_report
from hmsa_core.runtime.progress import Progress
from hmsa_core.taxonomy import ClassTable
from pipeline.jobs import measure
from pipeline.jobs.support import check_classes, provenance, role_index, warn, write_metrics
from pipeline.report import plots
from pipeline.workspace import keys
from pipeline.workspace.table import VERSIONS
from pipeline.workspace.workspace import Workspace

STAGE = "pseudo-label"
_MASK_IMAGES = 20  # images of a camera that a measured mask needs
_LOG = logging.getLogger(__name__)


def _coarse_label(
    root: Path, classes: ClassTable, sha256: Mapping[str, str], row: Mapping[str, Any]
) -> NDArray[np.uint8] | None:
    """Human coarse label of a row of the raw store as trainIds (checked against the digest of `prepare`), or None."""
    path = row["coarse_path"]
    return read_label(root / path, classes, sha256=sha256[row["name"]]) if path else None


def review_of(
    marks: Mapping[str, list[Mark]], classes: ClassTable, name: str, height: int, width: int
) -> tuple[NDArray[np.bool_], Labels] | None:
    """Flagged pixels and corrected labels of an image, or None when nobody reviewed the image."""
    return reviewed(marks[name], height, width, classes) if name in marks else None


def alike_of(marks: Mapping[str, Mark], classes: ClassTable, name: str, height: int, width: int) -> Labels | None:
    """Labels that were concluded from answers about alike regions, or None without any."""
    return reviewed([marks[name]], height, width, classes)[1] if name in marks else None


def disk_estimate(ws: Workspace) -> int:
    """Bytes: the final store is at most as large as the raw one; as progress, as output and in DVC's cache."""
    return 3 * sum(p.stat().st_size for p in ws.path("labels/raw").rglob("*.parquet"))


def run(ws: Workspace) -> None:
    """Write and publish labels/final and labels/shift.json."""
    raw = LabelStore.open(ws.path("labels/raw"), strict=True)
    policy = measure.chosen_policy(ws, raw)
    curves = curves_of(ws, raw)
    recipe = make_recipe(ws, raw, policy, curves)
    material = {"version": VERSIONS[STAGE], "recipe": recipe.key(raw)}
    work = keys.open_work(ws.work(STAGE), "labels", material)
    with Progress(len(raw), what=STAGE, stream=sys.stderr) as progress:
        statistics = finalise(
            raw,
            recipe,
            work / "store",
            lineage=provenance(STAGE),
            engine=Engine(ws.params.runtime.engine, ws.params.pseudo_label.workers),
            advance=progress.update,
            check_stop=ws.stop.check,
        )
    publish_store(work / "store", ws.path("labels/final"))
    atomic.write_json(ws.path("labels/shift.json"), _shift(ws, policy, curves))
    _report(ws, statistics)


def curves_of(ws: Workspace, raw: LabelStore) -> Curves | None:
    """Curves of the calibration images, if they were measured with this teacher and inference."""
    path = ws.path("calibration/curves.json")
    if not path.exists():
        return None
    curves = Curves.load(path)
    if binding(curves.lineage) != binding(raw.lineage):
        warn(STAGE, f"{path} is of another teacher or inference; merge rules are not measured")
        return None
    return curves


def make_recipe(ws: Workspace, raw: LabelStore, policy: ThresholdPolicy, curves: Curves | None) -> Recipe:
    """Recipe that this stage applies to a raw store under a policy (ablations pass another than the workspace's)."""
    config, sampling = ws.params.pseudo_label, ws.params.student_train.sampling
    index = Index.load(role_index(ws, "unlabelled"))
    check_classes(ws, str(raw.path), raw.classes, index.classes)
    coarse = {s.name: s.coarse_sha256 for s in index.samples if s.coarse}
    drawn = {s.name: s.coarse for s in index.samples if s.coarse}
    _tell_of_other_coarse_labels(raw, drawn)
    review = _review(raw)
    marks, alike = review.by_name(), review.alike()
    rules = None
    if config.merge.use_coarse:
        rules = (
            MergeRules.default(raw.classes, config.merge)
            if curves is None
            else measure_rules(curves, policy.codes(), config.merge, ws.params.calibrate.confidence)
        )
    return Recipe(
        policy=policy,
        rules=rules,
        human=partial(_coarse_label, ws.roots[index.root], index.classes, coarse) if rules is not None else None,
        human_paths=drawn,
        masks=_masks(ws),
        reviewed=partial(review_of, marks, raw.classes) if marks else None,
        alike=partial(alike_of, alike, raw.classes) if alike else None,
        centroids=CentroidSettings(sampling.tile, sampling.min_pixels, config.min_component),
        per_image={
            # The path counts too: a label file's name decides how it is read, and the final store records the path.
            name: [drawn.get(name, ""), coarse.get(name, ""), [mark.to_json() for mark in _all(name, marks, alike)]]
            for name in sorted({*coarse, *marks, *alike})
        },
    )


def _all(name: str, marks: Mapping[str, list[Mark]], alike: Mapping[str, Mark]) -> list[Mark]:
    return [*marks.get(name, []), *([alike[name]] if name in alike else [])]


def _review(raw: LabelStore) -> ReviewFile:
    review = ReviewFile(raw.path, raw.pictures(), labels_id(raw.lineage))
    names = sorted({mark.name for mark in review.foreign()})
    if names:
        warn(
            STAGE,
            f"marks of {len(names)} images, first {names[0]}, are of other pictures than those of now and do not "
            "count: look again",
        )
    return review


def _tell_of_other_coarse_labels(raw: LabelStore, drawn: Mapping[str, str]) -> None:
    others = sum(row["coarse_path"] != drawn.get(row["name"], "") for row in raw.rows())
    if others:
        _LOG.warning(
            "%s: %d image%s other human coarse labels than when %s labelled: merged as they are now; what %s counts "
            "of them (agreement with people, on the page) is as of then",
            STAGE,
            others,
            *(("s have", "they were") if others > 1 else (" has", "it was")),
            raw.path,
        )


def _masks(ws: Workspace) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Static camera masks by image size: the given mask, or the pixels that are void in nearly all fine labels."""
    merge = ws.params.pseudo_label.merge
    if merge.mask is not None:
        mask = read_mask(ws.resolve(merge.mask))
        _check_mask(ws, mask)
        return {(mask.shape[0], mask.shape[1]): mask}
    if merge.mask_void_share is None:
        return {}
    masks = measured_masks(_fine_labels(ws, _MASK_IMAGES), merge.mask_void_share, _MASK_IMAGES)
    for (height, width), mask in masks.items():
        _LOG.info("%s: camera mask of %dx%d leaves out %.1f %%", STAGE, width, height, 100 * mask.mean())
    return masks


def _check_mask(ws: Workspace, mask: NDArray[np.bool_]) -> None:
    """Refuse a mask that fits no image, and warn about images of other sizes: the mask leaves out nothing there."""
    sizes = Counter((sample.height, sample.width) for sample in Index.load(role_index(ws, "unlabelled")).samples)
    path, (height, width) = ws.params.pseudo_label.merge.mask, mask.shape
    others = {size: n for size, n in sizes.items() if size != mask.shape}
    if sizes and mask.shape not in sizes:
        size = max(others, key=lambda one: others[one])
        raise ConfigError(
            f"pseudo_label.merge.mask: {path} is {width}x{height}, the images are {size[1]}x{size[0]}",
            hint="give a mask of the images' size, or null",
        )
    if others:
        warn(
            STAGE,
            f"pseudo_label.merge.mask is {width}x{height}: {sum(others.values())} images of other sizes are not masked",
        )


def _fine_labels(ws: Workspace, at_least: int) -> Iterator[NDArray[np.uint8]]:
    """Yield labels of sizes that at least `at_least` images have: counts for every size would fill the memory."""
    index = Index.load(role_index(ws, "learn"))
    samples = index.select(kinds=("fine",))
    of_size = Counter((sample.height, sample.width) for sample in samples)
    for sample in samples:
        if of_size[sample.height, sample.width] < at_least:
            continue
        yield read_label(ws.roots[index.root] / sample.label, index.classes, sha256=sample.label_sha256)


def _shift(ws: Workspace, policy: ThresholdPolicy, curves: Curves | None) -> dict[str, Any]:
    """Report whether the evidence covers these images, per class and city."""
    if curves is None:
        return {"skipped": "no calibration for this teacher: nothing to compare with"}
    statistics = StoreStatistics.open(ws.path("labels/raw"))
    histograms = {city: statistics.totals(city) for city in statistics.city_names()}
    return {"cities": shift_report(curves, histograms, policy, ws.params.calibrate.shift_limit)}


def _report(ws: Workspace, statistics: dict[str, Any]) -> None:
    rows = statistics["classes"]
    write_metrics(
        ws,
        STAGE,
        {
            "images": statistics["images"],
            "labelled_share": statistics["labelled_share"],
            "left_out": len(statistics["skipped"]),
            "conflict_pixels": sum(c["pixels"] for c in statistics["conflicts"]),
            "classes": {r["name"]: {"coverage": r["coverage"], "final": r["final"]} for r in rows},
        },
    )
    pixels = max(1, statistics["pixels"])
    groups: dict[str, list[float | None]] = {
        source: [r[key] / pixels for r in rows]
        for source, key in (("teacher alone", "from_teacher"), ("both", "both"), ("human alone", "from_human"))
    }
    names = [r["name"] for r in rows]
    plots.bars(ws.path(f"plots/{STAGE}-coverage.png"), names, groups, title="Final labels", x="share of all pixels")
