"""Checkpoints scored on a folder of images and a folder of labels: what `autolabel evaluate` does.

Labels are read before a network is: a value that is no class at the last of a thousand pictures costs no night.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hmsa_core.data.checks import perceptual_hash
from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Sample
from hmsa_core.io.atomic import digest, sha256_file
from hmsa_core.io.errors import IntegrityError
from hmsa_core.labels.exporting import city_of
from hmsa_core.lineage import Lineage, lineage_of_checkpoint
from hmsa_core.metrics import bootstrap_difference, bootstrap_iou
from pipeline.counts import by_category, by_city, finite
from pipeline.leaks import find_leaks

if TYPE_CHECKING:
    from hmsa_core.inference.evaluate_scores import Labelled, SettingScores
    from hmsa_core.inference.predictor import Predictor
    from hmsa_core.runtime.ranks import JobContext
    from hmsa_core.spec import EvaluationSetting
    from hmsa_core.taxonomy import ClassTable
    from pipeline.cli.inference_options import Options
    from pipeline.scored_files import LabelledFile, LabelReader

__all__ = [
    "ANSWER",
    "Contender",
    "Scored",
    "difference",
    "one_sided",
    "open_checkpoint",
    "score_checkpoint",
    "write_plots",
]

ANSWER = "hmsa-evaluation"  # format of `autolabel evaluate --json`
_NEAR_BITS = 2  # of 64, as evaluate.max_distance of the profiles


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


def open_checkpoint(options: Options, setting: EvaluationSetting) -> Contender:
    """Load the weights and what they learned from: a damaged checkpoint shows before another one was scored."""
    from hmsa_core.inference.predictor import load_predictor
    from hmsa_core.runtime.ranks import JobContext, start_ranks

    context = JobContext(options.checkpoint, start_ranks(options.runtime, {}), options.runtime)
    try:
        lineage = lineage_of_checkpoint(options.checkpoint)
    except IntegrityError as error:  # a checkpoint that was copied without its list can still be scored
        lineage = Lineage(unknown=(error.message,))
    return Contender(options, setting, context, load_predictor(options.checkpoint, context), lineage)


def score_checkpoint(
    contender: Contender,
    files: Sequence[LabelledFile],
    blocks: Sequence[str],
    classes: ClassTable,
    *,
    read_label: LabelReader,
    details: bool,
) -> Scored:
    """Run a checkpoint on all files and count; a picture that it has learned from is counted too."""
    from hmsa_core.inference.evaluate import read_ahead, score
    from hmsa_core.inference.evaluate_scores import Labelled, Scorer, summarise
    from hmsa_core.inference.predictor import Tiler
    from hmsa_core.runtime.progress import Progress

    setting = contender.setting
    scorer = Scorer(Tiler(contender.predictor), [setting], classes.num_classes, details=details)
    block_of = dict(zip([f.name for f in files], blocks, strict=True))
    judged: list[Sample] = []

    def read(file: LabelledFile) -> Labelled:
        image = read_image(file.image)
        judged.append(_sample(file, perceptual_hash(image)))
        city = city_of(file.name)
        return Labelled(file.name, image, read_label(file.label), block_of[file.name], city)

    with Progress(len(files), what="evaluate") as progress:
        score(scorer, read_ahead(files, read), contender.context.check_stop, progress.update)
    scores = scorer.scores[setting.name]
    summary = summarise(scores, setting, classes)
    keys = ("mean_iou", "iou", "images", "pixel_accuracy", "scales", "flip", "mode", "long_edge", "score_at")
    counts = np.sum(scores.confusions, axis=0)
    interval = bootstrap_iou(np.stack(scores.confusions), scores.blocks)
    figures = {
        **{key: summary[key] for key in keys},
        "interval": interval.to_json(classes.classes),
        "category_iou": by_category(counts, classes),
        "judged": _digest_of(judged),
        "checkpoint": contender.options.meta["weights_sha256"],
        "precision": contender.predictor.precision,
        "learned": _learned(judged, contender.lineage),
    }
    if details:
        figures |= _details(scores, summary, counts) | {"classes": list(classes.classes)}  # of the confusions, in order
    return Scored(scores, figures)


def difference(ours: Scored, theirs: Scored, classes: ClassTable) -> dict[str, Any]:
    """Ours minus theirs, paired on the same draws of blocks."""
    return bootstrap_difference(
        np.stack(ours.scores.confusions), np.stack(theirs.scores.confusions), ours.scores.blocks
    ).to_json(classes.classes)


def write_plots(folder: Path, scored: Mapping[str, Scored], classes: ClassTable) -> None:
    """confusion-NAME.png of each, reliability.png, iou.png; of scores with details."""
    from pipeline import plots  # here, because it needs the optional packages [report]

    for name, one in scored.items():
        counts = np.sum(one.scores.confusions, axis=0)
        title = f"{name}: share of each true class"
        plots.confusion(folder / f"confusion-{name}.png", counts, classes.classes, title=title)
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {"confidence means what it says": ([0, 1], [0, 1])}
    for name, one in scored.items():
        bins = one.figures["reliability"]
        full = [k for k, pixels in enumerate(bins["pixels"]) if pixels]
        series[name] = ([bins["confidence"][k] for k in full], [bins["accuracy"][k] for k in full])
    plots.lines(
        folder / "reliability.png", series, title="Reliability", x="confidence", y="accuracy", limits=(0.0, 1.0)
    )
    iou = {name: [one.figures["iou"][c] for c in classes.classes] for name, one in scored.items()}
    plots.bars(folder / "iou.png", classes.classes, iou, title="IoU by class", x="IoU")


def one_sided(scored: Sequence[Scored], classes: ClassTable) -> list[str]:
    """In words: classes that no label shows and a checkpoint predicts; they score 0 and are in its mean."""
    counts = [np.sum(one.scores.confusions, axis=0) for one in scored]
    told = []
    for c, name in enumerate(classes.classes):
        predicted = [int(each[:, c].sum()) for each in counts]
        if not counts[0][c].sum() and any(predicted):
            how = " and ".join(f"{n} pixels" for n in predicted)
            where = "the mean" if all(predicted) else "the mean of the one that predicts it, not in the difference"
            told.append(f"{name} is in no label and predicted at {how}: its IoU of 0 is in {where}")
    return told


def _sample(file: LabelledFile, phash: str) -> Sample:
    return Sample(
        name=file.name,
        image=str(file.image),
        label=str(file.label),
        coarse="",
        kind="fine",
        split="",
        role="report",
        city="",
        sequence="",
        frame=-1,
        block="",
        height=0,
        width=0,
        image_sha256=sha256_file(file.image),
        label_sha256=sha256_file(file.label),
        coarse_sha256="",
        phash=phash,
    )


def _digest_of(judged: Sequence[Sample]) -> str:
    """Which pictures and labels were scored: the same set has the same digest wherever it lies."""
    return digest(sorted([s.image_sha256, s.label_sha256] for s in judged))


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
        "cities": by_city(np.stack(scores.confusions), scores.cities),
        "confusion": counts.tolist(),
    }
