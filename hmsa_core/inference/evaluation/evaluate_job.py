"""The job `evaluate`: score a checkpoint on the labelled images of an index, under several settings.

Result: `work/<setting>.npz` {names, blocks, cities, confusions int64 (N, C, C) rows = truth, classes; with `details`
also band_confusions, boundary, weights, reliability_*} and, last, `work/summary.json`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.evaluation.scoring import Labelled, Scores, score, summarise
from hmsa_core.inference.network.predictor import load_predictor
from hmsa_core.inference.teachers.teacher import classes_of
from hmsa_core.io.atomic import write_bytes, write_json
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import EvaluateSpec
from hmsa_core.taxonomy import ClassTable


def run(spec: EvaluateSpec, context: JobContext) -> dict[str, Any]:
    """Score the selected images; all ranks call it.

    Returns:
        The content of `work/summary.json`.

    Raises:
        InputError: no selected image has a label. ConfigError: the checkpoint has other classes, or cannot be
            run in a setting's mode. IntegrityError: a file is not the one that was indexed.
    """
    index = Index.load(spec.selection.index)
    selected = index.select(**spec.selection.filters())
    samples = [sample for sample in selected if sample.label]
    if not samples:
        raise InputError(f"{spec.selection.index}: none of the {len(selected)} selected images has a label")
    predictor = load_predictor(spec.checkpoint, context)
    classes = classes_of(predictor, index.classes, str(spec.checkpoint))
    if classes.classes != index.classes.classes:
        raise ConfigError(
            f"{spec.checkpoint} labels {classes.name}, the index holds labels of {index.classes.name}",
            hint="judge a model on labels of its own classes",
        )
    root = spec.roots[index.root]

    def read(sample: Sample) -> Labelled:
        image = read_image(root / sample.image, sha256=sample.image_sha256)
        return Labelled(sample, image, read_label(root / sample.label, index.classes, sha256=sample.label_sha256))

    scores = score(predictor, spec.settings, samples, read, context, details=spec.details)
    if not context.ranks.is_main:
        return {}
    for name, one in scores.items():
        write_bytes(spec.work / f"{name}.npz", _npz_bytes(one, classes))
    summary = {
        "checkpoint": predictor.meta["weights_sha256"],
        "precision": predictor.precision,
        "images": len(samples),
        "classes": list(classes.classes),
        "settings": {setting.name: summarise(scores[setting.name], setting, classes) for setting in spec.settings},
        "lineage": spec.lineage,
    }
    write_json(spec.work / "summary.json", summary)
    return summary


def _npz_bytes(scores: Scores, classes: ClassTable) -> bytes:
    """The setting's arrays as an .npz file: equal scores give equal bytes."""
    count = classes.num_classes
    arrays: dict[str, NDArray[Any]] = {
        "names": np.array(scores.of("name"), dtype=str),
        "blocks": np.array(scores.of("block"), dtype=str),
        "cities": np.array(scores.of("city"), dtype=str),
        "confusions": np.array(scores.confusions, np.int64).reshape(-1, count, count + 1)[..., :count],
        "classes": np.array(classes.classes, dtype=str),
    }
    if scores.band:
        arrays["band_confusions"] = np.array(scores.band, np.int64)[..., :count]
        arrays["boundary"] = np.array(scores.boundary, np.int64)
        arrays |= {f"reliability_{k}": v for k, v in scores.reliability.diagram().items()}
    if scores.weights:
        arrays["weights"] = np.array(scores.weights)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # numpy's archives carry no clock
    return buffer.getvalue()
