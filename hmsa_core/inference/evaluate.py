"""Score a checkpoint on labelled images under several settings; per-image confusions for any statistic.

Result: `work/<setting>.npz` {names, blocks, cities, confusions int64 (N, C, C) rows = truth, classes; with
`details` also band_confusions, boundary, weights, reliability_*} and, last, `work/summary.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.evaluate_scores import Labelled, Scorer, SettingScores, merge_scores, npz_bytes, summarise
from hmsa_core.inference.infer import classes_of
from hmsa_core.inference.predictor import Tiler, load_predictor
from hmsa_core.io.atomic import write_bytes, write_json
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import EvaluateSpec
from hmsa_core.taxonomy import ClassTable

__all__ = ["read_ahead", "run", "score"]

T = TypeVar("T")
U = TypeVar("U")


def run(spec: EvaluateSpec, context: JobContext) -> dict[str, Any]:
    """Score the selected images; all ranks call it, each scores every world-th image.

    Returns:
        The content of `work/summary.json`.

    Raises:
        InputError: no selected image has a label. ConfigError: the checkpoint has other classes, or cannot be
            run in a setting's mode. IntegrityError: a file is not the one that was indexed.
    """
    index = Index.load(spec.selection.index)
    selected = index.select(**spec.selection.model_dump(exclude={"index"}))
    samples = [sample for sample in selected if sample.label]
    if not samples:
        raise InputError(f"{spec.selection.index}: none of the {len(selected)} selected images has a label")
    predictor = load_predictor(spec.checkpoint, context)
    classes = classes_of(predictor, index, spec.checkpoint)
    if classes.classes != index.classes.classes:
        raise ConfigError(
            f"{spec.checkpoint} labels {classes.name}, the index holds labels of {index.classes.name}",
            hint="judge a model on labels of its own classes",
        )
    scorer = Scorer(Tiler(predictor), spec.settings, classes.num_classes, details=spec.details)
    mine = samples[context.rank :: context.world]
    root = spec.roots[index.root]
    what = "evaluate" if context.world == 1 else f"evaluate (rank 0 of {context.world})"
    with context.progress(len(mine), what=what) as progress:
        score(scorer, read_ahead(mine, lambda s: _read(s, root, index.classes)), context.check_stop, progress.update)
    parts = context.ranks.gather(scorer.scores)
    if not context.is_main:
        return {}
    checkpoint = {"checkpoint": predictor.meta["weights_sha256"], "precision": predictor.precision}
    return _write(spec, parts, [s.name for s in samples], classes, checkpoint)


def score(
    scorer: Scorer, items: Iterable[Labelled], check_stop: Callable[[], None], advance: Callable[[], None]
) -> None:
    """Score images one after another; stops between two of them."""
    for item in items:
        check_stop()
        scorer.add(item)
        advance()


def read_ahead(sources: Sequence[T], read: Callable[[T], U], ahead: int = 2) -> Iterator[U]:
    """Read in a thread while the caller works; at most `ahead` results wait."""
    with ThreadPoolExecutor(1, "reader") as reader:
        waiting = [reader.submit(read, source) for source in sources[:ahead]]
        for following in [*sources[ahead:], *[None] * min(ahead, len(sources))]:
            result = waiting.pop(0).result()
            if following is not None:
                waiting.append(reader.submit(read, following))
            yield result


def _read(sample: Sample, root: Path, classes: ClassTable) -> Labelled:
    return Labelled(
        sample.name,
        read_image(root / sample.image, sha256=sample.image_sha256),
        read_label(root / sample.label, classes, sha256=sample.label_sha256),
        sample.block,
        sample.city,
    )


def _write(
    spec: EvaluateSpec,
    parts: list[dict[str, SettingScores]],
    order: list[str],
    classes: ClassTable,
    checkpoint: dict[str, Any],
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for setting in spec.settings:
        merged = merge_scores([part[setting.name] for part in parts], order)
        settings[setting.name] = summarise(merged, setting, classes)
        write_bytes(spec.work / f"{setting.name}.npz", npz_bytes(merged, classes))
    summary = {
        **checkpoint,
        "images": len(order),
        "classes": list(classes.classes),
        "settings": settings,
        "lineage": spec.lineage,
    }
    write_json(spec.work / "summary.json", summary)
    return summary
