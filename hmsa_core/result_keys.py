"""What determines the result of each job: the one place that says it, for the job and for whoever keeps its folder.

A stage names a job's work folder by the digest of this; a job compares it with what its folder holds before it goes on.
Nothing here is a time, a path or a machine's name; `hmsa_core.config.key_material` says which settings count. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmsa_core.config import InferConfig, key_material
from hmsa_core.data.decode import holds_train_ids
from hmsa_core.data.index import Sample
from hmsa_core.inference.teachers.sources import Spec, made_by
from hmsa_core.io.atomic import digest, sha256_file
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.models import read_meta
from hmsa_core.spec import EvaluateSpec, PseudoData, TrainSpec
from hmsa_core.taxonomy import ClassTable

METHOD = 1  # raise it when inference computes something else: older labels are then not mixed with newer ones


def train_material(spec: TrainSpec, classes: ClassTable, fine: Sequence[Sample]) -> dict[str, Any]:
    """What determines the weights; `fine` are the images with fine labels that `spec` selects, of these `classes`."""
    start = {} if spec.init_from is not None else _trunk_file(spec.config.model.trunk_file)
    return {
        "config": key_material(spec.config),
        "classes": classes.digest(),
        "fine": samples_digest(fine),
        "centroids": sha256_file(spec.fine.centroids),
        "init_from": read_meta(spec.init_from)["weights_sha256"] if spec.init_from else None,
        "pseudo": [_pseudo(part) for part in spec.pseudo],
        **start,
    }


def infer_material(
    config: InferConfig, teacher: Spec, classes: ClassTable, *, kind: str, precision: str
) -> dict[str, Any]:
    """What determines a label. Device and threads may move last bits: they are recorded only.

    Args:
        config: scales, flip, codec.
        teacher: what people write, or its parts (`teachers.sources`).
        classes: of the labels.
        kind: of the teacher; `average` and `max` have the weights of `single`, so its digest.
        precision: that the teacher computes in.
    """
    how = {**made_by(teacher, config.passes), "precision": precision, **_fusion(kind)}
    return {**how, "method": METHOD, "codec": config.codec, "classes": classes.digest()}


def evaluate_material(spec: EvaluateSpec, classes: ClassTable, samples: Sequence[Sample]) -> dict[str, Any]:
    """What determines the counts of an evaluation: `classes` of the index and the images that `spec` selects."""
    meta = read_meta(spec.checkpoint)
    return {
        "weights": meta["weights_sha256"],
        "images": samples_digest(samples),
        "settings": [key_material(setting) for setting in spec.settings],
        "runtime": key_material(spec.runtime),
        "details": spec.details,
        "classes": classes.digest(),
        "groups": digest([[s.name, s.block, s.city] for s in samples]),  # intervals and tables go by them
        **_fusion(str(meta["kind"])),
    }


def samples_digest(samples: Sequence[Sample]) -> str:
    """Digest of which images and labels a list holds, in order; the name of a label file says how it is read."""
    forms = [[part for part in ("label", "coarse") if holds_train_ids(getattr(s, part))] for s in samples]
    return digest(
        [
            [s.name, s.image_sha256, s.label_sha256, s.coarse_sha256, *form]
            for s, form in zip(samples, forms, strict=True)
        ]
    )


def _fusion(kind: str) -> dict[str, str]:
    """`average` and `max`: the weights' digest is that of a single-scale model and cannot tell them."""
    return {"kind": kind} if kind in ("average", "max") else {}


def _pseudo(part: PseudoData) -> dict[str, str | float]:
    store, centroids = str(read_manifest(part.store)["digest"]), sha256_file(part.centroids)
    return {"store": store, "centroids": centroids, "weight": part.weight}


def _trunk_file(given: str | None) -> dict[str, str]:
    """A file of trunk weights by content; packages and commits stay what they are."""
    source = Path(given or "").expanduser()
    return {"trunk_weights": sha256_file(source)} if source.is_file() else {}
