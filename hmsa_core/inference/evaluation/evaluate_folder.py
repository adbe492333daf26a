"""Score networks on a folder of images and a folder of labels: what `autolabel evaluate` prints.

Labels are read before a network is: a value that is no class at the last of a thousand pictures costs no night.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hmsa_core.config import RuntimeConfig
from hmsa_core.data.checks import perceptual_hash
from hmsa_core.data.decode import holds_train_ids, read_image
from hmsa_core.data.index import Sample
from hmsa_core.data.layouts import load_classes
from hmsa_core.inference.evaluation.labelled_files import (
    Ids,
    LabelReader,
    blocks_of,
    check_labels,
    in_order_of,
    label_reader,
    pairs_of,
)
from hmsa_core.inference.evaluation.scoring import Labelled, Scores, score, summarise
from hmsa_core.inference.network.predictor import Predictor, load_predictor
from hmsa_core.inference.teachers.run_options import RunOptions, teacher_options
from hmsa_core.inference.teachers.sources import Spec, chosen_on, digest_of, lineage_of, only_checkpoint, parse
from hmsa_core.inference.teachers.teacher import Teacher, open_teacher
from hmsa_core.io.atomic import digest, sha256_file
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError
from hmsa_core.leaks import find_leaks
from hmsa_core.lineage import Lineage
from hmsa_core.metrics import bootstrap_difference, bootstrap_iou, by_category, by_city, finite
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import EvaluationSetting
from hmsa_core.taxonomy import ClassTable

_NEAR_BITS = 2  # of 64, as evaluate.max_distance of the profiles
Tell = Callable[[str], None]
_LOG = logging.getLogger(__name__)
_FIGURES = ("mean_iou", "iou", "images", "pixel_accuracy", "scales", "flip", "mode", "long_edge", "score_at")


@dataclass(frozen=True)
class Folders:
    """Images and labels to score on, and how."""

    images: Path
    labels: Path
    classes: str  # a file of class names, or a public label set
    ids: Ids = "auto"  # what labels hold
    skip_unlabelled: bool = False
    mode: Literal["model", "single", "average", "max"] = "model"
    long_edge: int | None = None  # pixels; images are brought to it
    score_at: Literal["original", "resized"] = "original"
    block_length: int = 3  # neighbours by number that intervals draw together
    details: bool = False


def evaluate(
    model: Spec,
    images: str | Path,
    labels: str | Path,
    classes: str | Path,
    *,
    baseline: Spec | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    runtime: RuntimeConfig | None = None,
    tell: Tell = _LOG.warning,
    **more: Any,
) -> dict[str, Any]:
    """Score a network on a folder of images and a folder of labels of the same stems.

        scores = evaluate("models/student", "images", "labels", "classes.json")
        scores["mean_iou"], scores["iou"]["road"], scores["interval"]

    Args:
        model: a checkpoint folder or a file in it, a file of `autolabel adopt`, onnx:FILE, hf:FOLDER,
            scores:FOLDER, or a list of these (their mean).
        images, labels: folders; labels hold ids of the class file, trainIds or colours (`ids`).
        classes: a file of class names, or a public label set: cityscapes, mapillary_v1.2, voc, ...
        baseline: a second one; "baseline" and "difference" with its interval are in the result.
        scales, flip: None = each checkpoint's own; of other networks 1, not mirrored.
        runtime: threads, device, precision; None = one thread, fp32.
        tell: gets a line for each thing that may mislead.
        more: further fields of `Folders`.

    Returns:
        The JSON of `autolabel evaluate --json`: mean_iou, iou by class name, images, interval, learned, ...

    Raises:
        HmsaError: its kind says whose fault it is.
    """
    runtime = runtime or RuntimeConfig(precision="fp32")
    folders = Folders(Path(images), Path(labels), str(classes), **more)
    given = load_classes(Path(), folders.classes)
    if folders.ids == "train":
        given = given.of_train_ids()
    specs = [one for one in (model, baseline) if one is not None]
    runs = [teacher_options(one, None if only_checkpoint(one) else given, scales, flip) for one in specs]
    samples = _pairs(folders, tell)
    table = _as_trained(given, runs, folders, samples, tell)
    for second in runs[1:]:
        _check_baseline(table, runs[0], second, folders, tell)
    read_label = label_reader(table, colours=folders.ids == "colours")
    _note(tell, *check_labels(samples, given, read_label, folders.ids))
    _tell_blocks([sample.block for sample in samples], folders.block_length, tell)
    context = JobContext.alone(runtime)
    opened = [(_open(run, table, samples, context), _lineage_of(run)) for run in runs]  # before one is scored
    scored = [
        _score(run, *loaded, context, folders, samples, table, read_label)
        for run, loaded in zip(runs, opened, strict=True)
    ]
    for run, (scores, figures) in zip(runs, scored, strict=True):
        _tell_learned(figures["learned"], run, len(samples), tell)
        _tell_chosen(scores.samples, run, tell)
    _note(tell, *_one_sided([scores for scores, _ in scored], table))
    scores, result = scored[0]
    for other, figures in scored[1:]:
        difference = bootstrap_difference(np.stack(scores.confusions), np.stack(other.confusions), scores.of("block"))
        result = {**result, "baseline": figures, "difference": difference.to_json(table.classes)}
    return result


def _note(tell: Tell, *notes: str) -> None:
    for note in notes:
        tell(f"note: {note}")


def _pairs(folders: Folders, tell: Tell) -> list[Sample]:
    """The images as rows of an index, with their blocks."""
    samples, unlabelled, notes = pairs_of(folders.images, folders.labels, train_ids=folders.ids == "train")
    _note(tell, *notes)
    if unlabelled:
        count = len(samples) + len(unlabelled)
        fault = f"{len(unlabelled)} of {count} images have no label of the same stem, the first is {unlabelled[0]}"
        if not folders.skip_unlabelled:
            raise InputError(
                fault,
                hint="images and labels are paired by file name without its ending; --skip-unlabelled leaves them out",
            )
        _note(tell, f"{fault}: left out")
    blocks = blocks_of([sample.name for sample in samples], folders.block_length)
    return [replace(sample, block=block) for sample, block in zip(samples, blocks, strict=True)]


def _tell_blocks(blocks: list[str], length: int, tell: Tell) -> None:
    count, sequences = len(set(blocks)), len({block.rpartition("/")[0] for block in blocks})
    if count == 1:
        _note(tell, "all images are neighbours, one block: no interval; --block-length 1 draws each alone")
    elif count == len(blocks) and length > 1:
        tell(
            "note: no two names look like neighbours of a sequence, each image is drawn alone: intervals are too "
            "narrow where some show the same place"
        )
    elif sequences == 1:
        tell(
            f"note: {count} blocks of {length} neighbours, by their names all of one sequence: if that is one drive, "
            "the interval says nothing of other places"
        )


def _tell_learned(learned: dict[str, Any], options: RunOptions, images: int, tell: Tell) -> None:
    if learned["images"]:
        tell(
            f"warning: {options} has learned from {learned['images']} of these {images} images "
            f"({learned['first']}): its figures are not those of unseen images"
        )
    for gap in learned["unknown"]:
        tell(f"note: whether {options} knows these images is not proven: {gap}")


def _tell_chosen(samples: Sequence[Sample], options: RunOptions, tell: Tell) -> None:
    chosen = chosen_on(options.teacher)
    if seen := sum(sample.image_sha256 in chosen for sample in samples):
        tell(f"warning: by {seen} of these {len(samples)} images it was chosen how {options} runs its networks")


def _as_trained(
    classes: ClassTable, runs: Sequence[RunOptions], folders: Folders, samples: Sequence[Sample], tell: Tell
) -> ClassTable:
    """The classes in the checkpoint's order; those that have other names there are taken by their number."""
    run = runs[0]
    trained, names = _names_of(run, classes, folders.classes), [name.lower() for name in classes.classes]
    if trained == names:
        return classes
    numbered = folders.ids == "train" or any(holds_train_ids(sample.label) for sample in samples)
    numbered |= any(only_checkpoint(one.teacher) is None for one in runs)  # their classes are mapped to those given
    if sorted(trained) == sorted(names) and len(set(trained)) == len(trained) and not numbered:
        _note(tell, f"{folders.classes}: its classes are taken by name, {run} has another order")
        return in_order_of(classes, trained)
    _tell_other_names(trained, names, run, folders.classes, tell)
    return classes


def _check_baseline(classes: ClassTable, run: RunOptions, baseline: RunOptions, folders: Folders, tell: Tell) -> None:
    """The counts of both go by the first one's order."""
    trained, names = _names_of(baseline, classes, folders.classes), [name.lower() for name in classes.classes]
    if trained != names:
        _tell_other_names(trained, names, baseline, str(run), tell)


def _names_of(options: RunOptions, classes: ClassTable, given: str) -> list[str]:
    """A checkpoint's class names in lower case; those that were given where it has none."""
    count = options.num_classes
    if classes.num_classes != count:
        raise ConfigError(
            f"{given} has {classes.num_classes} classes, {options} was trained for {count}",
            hint="give the class file of the data set that the checkpoint was trained for",
        )
    table = options.class_table
    return [row["name"].lower() for row in table["classes"]] if table else [name.lower() for name in classes.classes]


def _tell_other_names(
    trained: Sequence[str], names: Sequence[str], options: RunOptions, given: str, tell: Tell
) -> None:
    """Some names differ and no other: by number. A name with another number: neither by name nor by number."""
    first = next(i for i, (a, b) in enumerate(zip(trained, names, strict=True)) if a != b)
    message = f"{given}: class {first} is {names[first]!r}, in {options} it is {trained[first]!r}"
    moved = next((name for i, name in enumerate(names) if name in trained and trained[i] != name), None)
    if moved is not None:
        raise ConfigError(
            f"{message}, and {moved!r} has another number: they cannot be compared by number",
            hint=f"the names of {options} in their order: {', '.join(trained)}",
        )
    _note(tell, f"{message}; classes are compared by their number")


def _open(run: RunOptions, classes: ClassTable, samples: Sequence[Sample], context: JobContext) -> Predictor | Teacher:
    alone = only_checkpoint(run.teacher)
    if alone is not None:
        return load_predictor(alone, context)
    teacher = open_teacher(run.teacher, run.passes, classes, context)
    teacher.check([sample.name for sample in samples])
    return teacher


def _lineage_of(run: RunOptions) -> Lineage:
    """The images that the weights learned from; a damaged list ends the run before a network is scored."""
    try:
        return lineage_of(run.teacher)
    except IntegrityError as error:  # a checkpoint that was copied without its list can still be scored
        return Lineage(unknown=(error.message,))


def _score(
    run: RunOptions,
    network: Predictor | Teacher,
    lineage: Lineage,
    context: JobContext,
    folders: Folders,
    samples: Sequence[Sample],
    classes: ClassTable,
    read_label: LabelReader,
) -> tuple[Scores, dict[str, Any]]:
    """A network's counts, and its figures as they are printed; an image that it has learned from is counted too."""
    setting = EvaluationSetting(
        name="evaluate",
        scales=run.passes.scales,
        flip=run.passes.flip,
        mode=folders.mode,
        long_edge=folders.long_edge,
        score_at=folders.score_at,
    )

    def read(sample: Sample) -> Labelled:
        image = read_image(sample.image)
        found = replace(
            sample,
            image_sha256=sha256_file(sample.image),
            label_sha256=sha256_file(sample.label),
            phash=perceptual_hash(image),
        )
        return Labelled(found, image, read_label(sample.label))

    scores = score(network, [setting], samples, read, context, details=folders.details)[setting.name]
    summary = summarise(scores, setting, classes)
    counts = np.sum(scores.confusions, axis=0)
    interval = bootstrap_iou(np.stack(scores.confusions), scores.of("block"))
    figures = {
        **{key: summary[key] for key in _FIGURES},
        "interval": interval.to_json(classes.classes),
        "category_iou": by_category(counts, classes),
        # The same set of pictures and labels has the same digest wherever it lies.
        "judged": digest(sorted([s.image_sha256, s.label_sha256] for s in scores.samples)),
        "checkpoint": digest_of(run.teacher),
        "precision": network.precision,
        "learned": _learned(scores.samples, lineage),
    }
    if any(source.adopted for source in parse(run.teacher)):
        figures |= {"scales": None, "flip": None}  # each network has those of its file
    if folders.details:
        figures |= _details(scores, summary, counts) | {"classes": list(classes.classes)}  # of the confusions, in order
    return scores, figures


def _one_sided(scored: Sequence[Scores], classes: ClassTable) -> list[str]:
    """In words: classes that no label shows and a checkpoint predicts; they score 0 and are in its mean."""
    counts = [np.sum(one.confusions, axis=0) for one in scored]
    notes = []
    for c, name in enumerate(classes.classes):
        predicted = [int(each[:, c].sum()) for each in counts]
        if not counts[0][c].sum() and any(predicted):
            how = " and ".join(f"{n} pixels" for n in predicted)
            where = "the mean" if all(predicted) else "the mean of the one that predicts it, not in the difference"
            notes.append(f"{name} is in no label and predicted at {how}: its IoU of 0 is in {where}")
    return notes


def _learned(judged: Sequence[Sample], lineage: Lineage) -> dict[str, Any]:
    """Pictures that the weights come from: the same file or a near copy. Neighbours in time are not looked for."""
    leaks = find_leaks(judged, lineage, model="", max_gap=0, max_distance=_NEAR_BITS)
    first = f"{leaks[0].name} is {leaks[0].learned}: {leaks[0].why}" if leaks else None
    return {"images": len(leaks), "first": first, "unknown": list(lineage.unknown)}


def _details(scores: Scores, summary: dict[str, Any], counts: Any) -> dict[str, Any]:
    diagram = scores.reliability.diagram()
    return {
        **{key: summary[key] for key in ("boundary", "band", "ece", "weights") if key in summary},
        "reliability": {k: [finite(v) for v in diagram[k].tolist()] for k in ("confidence", "accuracy", "pixels")},
        "cities": by_city(np.stack(scores.confusions), scores.of("city")),
        "confusion": counts[:, : len(counts)].tolist(),
    }
