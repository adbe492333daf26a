"""evaluate: score teacher, student, control and incumbent on images that none learned from; intervals and a verdict.

All models are judged on the same images: images that none of the models learned from. The unit of every interval is
the block (drive, city, run of frames).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.teachers.sources import chosen_on
from hmsa_core.io import atomic
from hmsa_core.io.trees import new_tree
from hmsa_core.leaks import Judgement
from hmsa_core.metrics import bootstrap_difference, bootstrap_iou, finite, gate, mean_iou_of
from pipeline.jobs import measure
from pipeline.jobs.support import evaluate_model, labelling_teacher, role_index, warn, weights_of, write_metrics
from pipeline.report import plots
from pipeline.workspace.counts import read_judged
from pipeline.workspace.registry import Registry, knows_other_classes
from pipeline.workspace.workspace import Workspace

STAGE = "evaluate"
OUT = "evaluation"
_ALONE = (
    "This is the verdict on this run alone. The gate of a night also counts earlier looks at these images; "
    "its verdict is on the morning page."
)


Results = dict[str, dict[str, gate.Judged]]  # model -> setting -> counts


def disk_estimate(ws: Workspace) -> int:
    """Bytes: confusions of five models under all settings, and the teacher's labels of the report images."""
    index = Index.load(role_index(ws, "report"))
    counts = 8 * index.classes.num_classes**2 * 5 * (1 + len(ws.params.evaluate.settings)) * len(index)
    return counts + index.pixels()


def run(ws: Workspace) -> None:
    """Score the models and publish evaluation/."""
    models, champion = _models(ws)
    samples = measure.fine_samples(ws, "report")
    if not samples:
        _record_unverified(ws, models)
        return
    judgement = measure.judge(ws, samples, models)
    index, config = role_index(ws, "report"), ws.params.evaluate
    options: dict[str, Any] = {"settings": config.settings, "runtime": config.runtime, "details": config.details}
    folders = {
        name: evaluate_model(ws, STAGE, name, path, index, judgement.names, **options) for name, path in models.items()
    }
    results: Results = {
        name: {s.name: read_judged(folder / f"{s.name}.npz", name) for s in config.settings}
        for name, folder in folders.items()
    }
    found = measure.measure(ws, STAGE, "kept", "report", judgement.names)
    policy = measure.chosen_policy(ws, found.store)
    kept = measure.kept_figures(found.judged, policy, ws.params.calibrate) | {"region": "all"}
    if found.judged is not found.curves:
        kept["region"] = ws.params.calibrate.region
        kept["all_pixels"] = measure.kept_figures(found.curves, policy, ws.params.calibrate)
    names, blocks, confusions = zip(*found.counts, strict=True)
    labels = gate.Judged("auto-labels", names, blocks, np.stack(confusions))
    classes = found.curves.classes.classes
    verdict = _verdict(ws, models, champion, results, judgement, classes)

    with new_tree(ws.path(OUT)) as out:
        _publish_counts(ws, folders, out)
        figures = _metrics(ws, models, results, labels, judgement, kept, classes)
        figures["labels"]["chosen_on"] = _seen_by_adopt(ws, [s for s in samples if s.name in set(judgement.names)])
        atomic.write_json(out / "metrics.json", figures)
        atomic.write_json(out / "verdict.json", verdict)
    write_metrics(ws, STAGE, _flat(ws, results, labels, kept, verdict))
    _plot(ws, results, classes)


def _models(ws: Workspace) -> tuple[dict[str, Path], str | None]:
    """The judged models, name -> checkpoint folder; and the name of the pinned reference, if one is pinned."""
    trained = {name: ws.path(f"models/{name}") for name in ("teacher", "student", "control")}
    models = {name: path for name, path in trained.items() if (path / "model.json").exists()}
    models.update([ws.incumbent()])
    champion = Registry(ws.root).champion()
    if champion is None:
        return models, None
    by_weights = {weights_of(path): name for name, path in reversed(models.items())}
    if name := by_weights.get(weights_of(champion.path)):
        return models, name
    if knows_other_classes(champion.path, Index.load(role_index(ws, "report")).classes):
        warn(
            STAGE,
            f"the pinned reference {champion.name} has other classes and is not scored; nothing is promoted until "
            "`autolabel models pin VERSION` names another, or `rm models/registry/champion.json` none",
        )
        return models, None
    return models | {"champion": champion.path}, "champion"


def _verdict(
    ws: Workspace,
    models: Mapping[str, Path],
    champion: str | None,
    results: Results,
    judgement: Judgement,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The gate's verdict on the student against the incumbent under the main setting."""
    config = ws.params.evaluate
    main = config.settings[0].name
    judged = {name: by_setting[main] for name, by_setting in results.items()}
    incumbent, _ = ws.incumbent()
    verdict = gate.judge(
        judged["student"],
        judged[incumbent],
        classes,
        config.gate,
        champion=judged.get(champion or ""),
        unknown=judgement.unknown["student"],
        seed=config.seed,
    )
    return verdict | {
        "notes": [*verdict["notes"], _ALONE],
        "candidate_weights_sha256": weights_of(models["student"]),
        "incumbent_weights_sha256": weights_of(models[incumbent]),
    }


def _metrics(
    ws: Workspace,
    models: Mapping[str, Path],
    results: Results,
    labels: gate.Judged,
    judgement: Judgement,
    kept: dict[str, Any],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    config = ws.params.evaluate
    options: dict[str, Any] = {"draws": config.draws, "level": config.confidence, "seed": config.seed}
    return {
        "main_setting": config.settings[0].name,
        "classes": list(classes),
        "settings": [s.model_dump(mode="json") for s in config.settings],
        "judgement": judgement.to_json(),
        "min_blocks": config.gate.min_blocks,
        "models": {
            name: {
                "weights_sha256": weights_of(models[name]),
                "settings": {
                    setting: bootstrap_iou(s.confusions, s.blocks, **options).to_json(classes)
                    for setting, s in by_setting.items()
                },
            }
            for name, by_setting in results.items()
        },
        "differences": {
            f"{a} - {b}": bootstrap_difference(x.confusions, y.confusions, x.blocks, **options).to_json(classes)
            for a, x, b, y in _pairs(ws, results, labels)
        },
        "kept": {"threshold": ws.params.pseudo_label.threshold, **kept},
        "labels": {
            "mean_iou": finite(mean_iou_of(labels.iou)),
            "classes": dict(zip(classes, map(finite, labels.iou), strict=True)),
        },
    }


def _seen_by_adopt(ws: Workspace, samples: Sequence[Sample]) -> int:
    """Images by which `autolabel adopt` also chose how the labelling networks are used."""
    seen = chosen_on(labelling_teacher(ws))
    return sum(sample.image_sha256 in seen for sample in samples)


def _pairs(ws: Workspace, results: Results, labels: gate.Judged) -> list[tuple[str, gate.Judged, str, gate.Judged]]:
    """Comparisons to report, each on the same images: (name, counts, baseline, counts)."""
    main, *others = (s.name for s in ws.params.evaluate.settings)
    pairs = [
        (a, results[a][main], b, results[b][main])
        for a, b in (("student", "control"), ("student", "teacher"), ("student", "incumbent"), ("control", "teacher"))
        if a in results and b in results
    ]
    student = results["student"][main]
    if ws.params.auto_infer.teacher is not None and student.images == labels.images:  # no model here is that teacher
        pairs.append(("student", student, "auto-labels", labels))
    first = next(iter(results))  # the teacher, or the student where no teacher is trained
    scores = results[first]
    return pairs + [(f"{first} {main}", scores[main], f"{first} {o}", scores[o]) for o in others]


def _flat(
    ws: Workspace, results: Results, labels: gate.Judged, kept: dict[str, Any], verdict: dict[str, Any]
) -> dict[str, Any]:
    """Figures that `dvc metrics diff` compares."""
    means = {
        model: {setting: finite(np.nanmean(s.iou)) for setting, s in by_setting.items()}
        for model, by_setting in results.items()
    }
    return {
        "mean_iou": means,
        "gain": {f"{a} - {b}": finite(np.nanmean(x.iou - y.iou)) for a, x, b, y in _pairs(ws, results, labels)},
        "kept": {k: kept[k] for k in ("precision", "coverage", "class_mean_precision", "class_mean_coverage")},
        "promote": verdict["promote"],
    }


def _publish_counts(ws: Workspace, folders: Mapping[str, Path], out: Path) -> None:
    """confusions-MODEL.npz of the main setting, summary-MODEL.json."""
    main = ws.params.evaluate.settings[0].name
    for model, folder in folders.items():
        atomic.publish_file(folder / f"{main}.npz", out / f"confusions-{model}.npz")
        atomic.publish_file(folder / "summary.json", out / f"summary-{model}.json")


def _plot(ws: Workspace, results: Results, classes: tuple[str, ...]) -> None:
    main = ws.params.evaluate.settings[0].name
    groups = {model: [finite(v) for v in r[main].iou] for model, r in results.items()}
    plots.bars(ws.path(f"plots/{STAGE}-iou.png"), classes, groups, title=f"IoU, setting {main}", x="IoU")
    counts = results["student"][main].confusions.sum(axis=0)
    plots.confusion(ws.path(f"plots/{STAGE}-confusion.png"), counts, classes, title="Student: share of each true class")


def _record_unverified(ws: Workspace, models: Mapping[str, Path]) -> None:
    """Record that no image is left to judge: profile paper-final trains on all fine data."""
    reason = "no image has the role `report`: this student is unverified (a release twin is judged by the test server)"
    weights = {name: weights_of(path) for name, path in models.items()}
    verdict = {"promote": False, "sentence": reason, "reasons": [reason]}
    with new_tree(ws.path(OUT)) as out:
        atomic.write_json(out / "metrics.json", {"unverified": reason, "weights_sha256": weights})
        atomic.write_json(out / "verdict.json", verdict | {"candidate_weights_sha256": weights["student"]})
    write_metrics(ws, STAGE, {"unverified": reason, "promote": False})
    plots.bars(ws.path(f"plots/{STAGE}-iou.png"), ["none"], {"IoU": [None]}, title="Nobody was judged", x="IoU")
    plots.confusion(ws.path(f"plots/{STAGE}-confusion.png"), np.zeros((1, 1)), ["none"], title="Nobody was judged")
