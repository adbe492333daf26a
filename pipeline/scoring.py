"""Checkpoints scored on a folder of images and a folder of labels: what `autolabel evaluate` does.

Labels are read before a network is: a value that is no class at the last of a thousand pictures costs no night.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hmsa_core.atomic import sha256_file
from hmsa_core.data.decode import read_image, read_label, read_label_ids
from hmsa_core.data.headers import read_header
from hmsa_core.data.index import Sample
from hmsa_core.data.layout import list_files, pair
from hmsa_core.data.phash import perceptual_hash
from hmsa_core.engine.lineage import Lineage, lineage_of_checkpoint
from hmsa_core.errors import DecodeError, InputError, IntegrityError
from hmsa_core.labels.exchange.files import city_of
from hmsa_core.metrics import bootstrap_difference, bootstrap_iou
from pipeline.gate_scores import finite
from pipeline.leaks import find_leaks
from pipeline.quality import by_category, by_city

if TYPE_CHECKING:
    from hmsa_core.engine.context import JobContext
    from hmsa_core.engine.evaluate_scores import Labelled, SettingScores
    from hmsa_core.engine.fast import Predictor
    from hmsa_core.engine.spec import EvaluationSetting
    from hmsa_core.taxonomy import ClassTable
    from pipeline.cli.inference_options import Options

__all__ = [
    "Contender", "LabelledFile", "Scored", "blocks_of", "check_labels", "difference", "open_checkpoint", "pairs_of",
    "score_checkpoint",
]  # fmt: skip

_SHAPE_ERROR = 0.01  # share by which a label's proportions may differ from its image's, beside rounding to pixels
_NEAR_BITS = 2  # of 64, as evaluate.max_distance of the profiles
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its label file."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Contender:
    """A checkpoint that is ready to be scored."""

    options: Options
    setting: EvaluationSetting
    context: JobContext
    predictor: Predictor
    lineage: Lineage


@dataclass(frozen=True)
class Scored:
    """One checkpoint's counts, and its figures as they are printed."""

    scores: SettingScores
    figures: dict[str, Any]


def pairs_of(images: Path, labels: Path) -> list[LabelledFile]:
    """Files of the same stem, sorted; a file without its partner is an InputError that names the first."""
    by_image, by_label = _by_stem(images, "images"), _by_stem(labels, "labels")
    both, no_label, no_image = pair({k: str(v) for k, v in by_image.items()}, {k: str(v) for k, v in by_label.items()})
    for stems, have, lack, files in (
        (no_label, "images", "label", by_image), (no_image, "labels", "image", by_label),
    ):  # fmt: skip
        if stems:
            first = files[stems[0]]
            raise InputError(
                f"{len(stems)} of {len(files)} {have} have no {lack} of the same stem, the first is {first}",
                hint="images and labels are paired by file name without its ending",
            )
    return [LabelledFile(stem, by_image[stem], by_label[stem]) for stem in both]


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"--{what} {folder}: no such folder")
    found: dict[str, Path] = {}
    for name in list_files(folder):
        path = folder / name
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {name} have the same stem")
        found[path.stem] = path
    if not found:
        raise InputError(f"--{what} {folder}: no JPEG, PNG, WebP or TIFF file in this folder")
    return found


def check_labels(files: Sequence[LabelledFile], classes: ClassTable, *, sure: bool = True) -> list[str]:
    """Read every label once; what does not hinder scoring comes back in words.

    Args:
        sure: somebody said that labels hold the ids of `classes`.

    Raises:
        DecodeError: a damaged label, or a value that is no class.
        InputError: a label whose proportions are not those of its image; not `sure`, and they look like trainIds.
    """
    from hmsa_core.engine.progress import Progress

    with Progress(len(files), what="read labels") as progress:
        sizes = [_other_size(file, classes, progress.update) for file in files]
    if not sure and classes.has_own_ids:
        _refuse_train_ids(files, classes)
    resized = [told for told in sizes if told]
    if not resized:
        return []
    return [f"{len(resized)} of {len(files)} labels have another size than their image and are scored at their own; "
            f"the first: {resized[0]}"]  # fmt: skip


def _other_size(file: LabelledFile, classes: ClassTable, advance: Callable[[], None]) -> str:
    try:
        label = read_label(file.label, classes)
    except DecodeError as error:
        if error.reason != "ids-out-of-range":
            raise
        hint = 'pixels without a class hold 255, or what the class file gives as "ignore_id"'
        if classes.has_own_ids:
            hint = f"labels that hold trainIds (0..{classes.num_classes - 1}, 255 = ignored) are read with --ids train"
        raise DecodeError(error.message, reason=error.reason, hint=hint) from error
    (height, width), image = label.shape, read_header(file.image)
    advance()
    if (height, width) == (image.height, image.width):
        return ""
    told = f"{file.label} is {width}x{height}, {file.image} is {image.width}x{image.height}"
    if not _alike(width, height, image.width, image.height):
        raise InputError(f"{told}: they do not show the same", hint="give each label its own image's proportions")
    return told


def _refuse_train_ids(files: Sequence[LabelledFile], classes: ClassTable) -> None:
    """Numbers that are ids and trainIds alike would be scored as other classes, and nobody would notice."""
    last = classes.num_classes  # often void
    if max(classes.train_to_id) <= last:
        return
    for file in files:
        if file.label.name.endswith("_labelTrainIds.png") or read_label_ids(file.label).max() > last:
            return
    raise InputError(
        f"no label in {files[0].label.parent} holds a number above {last}: trainIds, or ids of {classes.name}?",
        hint="say --ids train or --ids file",
    )


def _alike(width: int, height: int, image_width: int, image_height: int) -> bool:
    """Whether two sizes show the same, one of them resized and rounded."""
    expected = image_width * height / image_height
    return abs(width - expected) <= 1 + image_width / image_height + _SHAPE_ERROR * expected


def blocks_of(names: Sequence[str], length: int) -> list[str]:
    """Block of each name for intervals: runs of `length` neighbours of a sequence.

    A Cityscapes name belongs to its city, in the order of names; another one to the sequence before its last number.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        number = _LAST_NUMBER.search(name)
        city = city_of(name.removesuffix("_leftImg8bit"))
        if city:
            sequence, frame = city, 0
        else:
            sequence, frame = (name[: number.start()], int(number.group())) if number else ("", -1)
        groups.setdefault(sequence, []).append((frame, name))
    found = {
        name: f"{sequence}/{place // length:04d}"
        for sequence, members in groups.items()
        for place, (_, name) in enumerate(sorted(members))
    }
    return [found[name] for name in names]


def open_checkpoint(options: Options, setting: EvaluationSetting) -> Contender:
    """Load the weights and what they learned from: a damaged checkpoint shows before another one was scored."""
    from hmsa_core.engine.context import JobContext
    from hmsa_core.engine.distributed import start_ranks
    from hmsa_core.engine.infer import load_predictor

    context = JobContext(options.checkpoint, start_ranks(options.runtime, {}), options.runtime)
    try:
        lineage = lineage_of_checkpoint(options.checkpoint)
    except IntegrityError as error:  # a checkpoint that was copied without its list can still be scored
        lineage = Lineage(unknown=(error.message,))
    return Contender(options, setting, context, load_predictor(options.checkpoint, context), lineage)


def score_checkpoint(
    contender: Contender, files: Sequence[LabelledFile], blocks: Sequence[str], classes: ClassTable, *, details: bool
) -> Scored:
    """Run a checkpoint on all files and count; a picture that it has learned from is counted too."""
    from hmsa_core.engine.evaluate import read_ahead, score
    from hmsa_core.engine.evaluate_scores import Labelled, Scorer, summarise
    from hmsa_core.engine.fast_tiles import Tiler
    from hmsa_core.engine.progress import Progress

    setting = contender.setting
    scorer = Scorer(Tiler(contender.predictor), [setting], classes.num_classes, details=details)
    block_of = dict(zip([f.name for f in files], blocks, strict=True))
    judged: list[Sample] = []

    def read(file: LabelledFile) -> Labelled:
        image = read_image(file.image)
        judged.append(_sample(file, perceptual_hash(image)))
        return Labelled(file.name, image, read_label(file.label, classes), block_of[file.name], city_of(file.name))

    with Progress(len(files), what="evaluate") as progress:
        score(scorer, read_ahead(files, read), contender.context.check_stop, progress.update)
    scores = scorer.scores[setting.name]
    summary = summarise(scores, setting, classes)
    keys = ("mean_iou", "iou", "images", "pixel_accuracy", "scales", "flip", "mode", "long_edge", "score_at")
    counts = np.sum(scores.confusions, axis=0)
    interval = bootstrap_iou(np.stack(scores.confusions), scores.blocks)
    figures = {
        **{key: summary[key] for key in keys}, "interval": interval.to_json(classes.classes),
        "category_iou": by_category(counts, classes), "checkpoint": contender.options.meta["weights_sha256"],
        "precision": contender.predictor.precision, "learned": _learned(judged, contender.lineage),
    }  # fmt: skip
    if details:
        figures |= _details(scores, summary, counts)
    return Scored(scores, figures)


def difference(ours: Scored, theirs: Scored, classes: ClassTable) -> dict[str, Any]:
    """Ours minus theirs, paired on the same draws of blocks."""
    return bootstrap_difference(
        np.stack(ours.scores.confusions), np.stack(theirs.scores.confusions), ours.scores.blocks
    ).to_json(classes.classes)


def _sample(file: LabelledFile, phash: str) -> Sample:
    return Sample(
        name=file.name, image=str(file.image), label=str(file.label), coarse="", kind="fine", split="", role="report",
        city="", sequence="", frame=-1, block="", height=0, width=0, image_sha256=sha256_file(file.image),
        label_sha256="", coarse_sha256="", phash=phash,
    )  # fmt: skip


def _learned(judged: Sequence[Sample], lineage: Lineage) -> dict[str, Any]:
    """Pictures that the weights come from: the same file or a near copy. Neighbours in time are not looked for."""
    leaks = find_leaks(judged, lineage, model="", max_gap=0, max_distance=_NEAR_BITS)
    first = f"{leaks[0].name} is {leaks[0].learned}: {leaks[0].why}" if leaks else None
    return {"images": len(leaks), "first": first, "unknown": list(lineage.unknown)}


def _details(scores: SettingScores, summary: dict[str, Any], counts: Any) -> dict[str, Any]:
    diagram = scores.reliability.diagram()
    return {
        **{key: summary[key] for key in ("boundary", "band", "ece", "weights") if key in summary},
        "reliability": {k: [finite(v) for v in diagram[k].tolist()] for k in ("confidence", "accuracy", "pixels")},
        "cities": by_city(np.stack(scores.confusions), scores.cities), "confusion": counts.tolist(),
    }  # fmt: skip
