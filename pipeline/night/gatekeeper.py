"""Judge the student after `evaluate`, counting the looks of earlier nights; promote the student or say why not.

models/registry/looks.jsonl   {"candidate": weights, "images": digest of the report images}, one line per look;
                              the first line of each set of images has their "names"
models/registry/aa.json       {"mean_iou": [...], "recipe": digest, ...}: the student's recipe with other seeds
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core import __version__
from hmsa_core.config import key_material
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import digest_of
from hmsa_core.io import atomic, records
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, IntegrityError
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.metrics import gate
from hmsa_core.result_keys import samples_digest
from pipeline.jobs import measure
from pipeline.jobs.support import evaluate_model, fine_data, labelling_teacher, role_index, train_model, weights_of
from pipeline.workspace.counts import read_judged
from pipeline.workspace.registry import Registry, knows_other_classes
from pipeline.workspace.workspace import Workspace

_LOG = logging.getLogger(__name__)
_LOOKS = "models/registry/looks.jsonl"


# -- A/A trainings -----------------------------------------------------------------------------------


def aa_file(ws: Workspace) -> Path:
    """Path of the results of the A/A trainings."""
    return ws.path("models/registry/aa.json")


def measured_aa(ws: Workspace) -> dict[str, Any]:
    """Results that `autolabel models aa` wrote; {} before the command has run.

    Raises:
        IntegrityError: the file is damaged, or its figures are not shares in [0, 1].
    """
    path = aa_file(ws)
    if not path.exists():
        return {}
    hint = "`autolabel models aa` measures it anew"
    try:
        found = atomic.read_json(path)
    except HmsaError as error:
        raise IntegrityError(error.message, hint=hint) from error
    figures = found.get("mean_iou")
    if not isinstance(figures, list) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in figures):
        raise IntegrityError(f"{path}: mean_iou is {figures!r}, expected a list of shares between 0 and 1", hint=hint)
    return found


def recipe_digest(ws: Workspace) -> str:
    """Digest of the recipe of A/A trainings: the student's settings without the seed, and the main setting."""
    config = key_material(ws.params.student_train)
    config.pop("seed")
    if ws.params.student_train.init != "teacher":  # `key_material` leaves `init` out: keys hold the start weights
        config["init"] = ws.params.student_train.init
    return atomic.digest({"student_train": config, "setting": ws.params.evaluate.settings[0].model_dump(mode="json")})


def measure_aa(ws: Workspace, runs: int) -> dict[str, Any]:
    """Train the student's recipe `runs` times (seeds seed, seed + 1, ...), evaluate each run, write aa.json.

    Finished trainings and evaluations are reused. The first run is the existing student. The caller holds the
    locks of student-train and evaluate.

    Returns:
        The record in aa.json: {"mean_iou": [...], "sd": standard deviation, "recipe", "runs": [...], "lineage": {...}}.

    Raises:
        ConfigError: fewer than two runs. InputError: no labels to learn from, or no image to judge on.
    """
    from pipeline.stages import student_train, training  # with plots: `doctor` reads this file's figures without them
    from pipeline.stages.runner import check_space

    if runs < 2:
        raise ConfigError(f"{runs} A/A training says nothing about a spread: at least 2 are needed")
    if not ws.path("labels/final/manifest.json").exists():
        raise InputError(f"{ws.path('labels/final')}: no auto-labels yet", hint="run `dvc repro` first")
    student_train.check_teacher(ws.path("labels/final"), labelling_teacher(ws))
    check_space(ws, "models aa", training.disk_estimate(ws.params.student_train, models=runs))
    samples = measure.fine_samples(ws, "report")
    if not samples:
        raise InputError("no image has the role `report`: A/A trainings cannot be judged", hint="see data.roles")
    seeds = [ws.params.student_train.seed + i for i in range(runs)]
    models = {f"aa-{seed}": _train(ws, seed, i, runs) for i, seed in enumerate(seeds)}
    names = measure.judge(ws, samples, models).names
    scores = [_mean_iou(ws, name, model, names) for name, model in models.items()]
    record = {
        "mean_iou": scores,
        "sd": float(np.std(scores, ddof=1)),
        "recipe": recipe_digest(ws),
        "runs": [
            {"seed": seed, "weights_sha256": weights_of(model), "mean_iou": score}
            for seed, model, score in zip(seeds, models.values(), scores, strict=True)
        ],
        "lineage": {
            "student_train": ws.params.student_train.model_dump(mode="json"),
            "setting": ws.params.evaluate.settings[0].model_dump(mode="json"),
            "teacher": digest_of(labelling_teacher(ws)),
            "labels": str(read_manifest(ws.path("labels/final"))["digest"]),
            "report_images": samples_digest([s for s in samples if s.name in set(names)]),
            "images": len(names),
            "code_version": __version__,
        },
    }
    atomic.write_json(aa_file(ws), record)
    return record


def _train(ws: Workspace, seed: int, number: int, runs: int) -> Path:
    """Train the student with this seed, as the stage student-train does; return its checkpoint."""
    from pipeline.stages.student_train import pseudo_data, start_of

    _LOG.info("A/A training %d of %d: seed %d", number + 1, runs, seed)
    config = ws.params.student_train.model_copy(update={"seed": seed})
    labeller = labelling_teacher(ws)
    pseudo = pseudo_data(ws)
    fine = fine_data(ws)
    # The job's name is part of the key: the name "student" finds the training of the existing student.
    job, start = "student" if number == 0 else f"aa-{seed}", start_of(ws)
    run = train_model(ws, "student-train", job, config, fine, pseudo=pseudo, init_from=start, teacher=labeller)
    return run / "model"


def _mean_iou(ws: Workspace, name: str, model: Path, names: tuple[str, ...]) -> float:
    config = ws.params.evaluate
    main = config.settings[0]
    folder = evaluate_model(ws, "evaluate", name, model, role_index(ws, "report"), names, (main,), config.runtime)
    return float(np.nanmean(read_judged(folder / f"{main.name}.npz", name).iou))


# -- looks at the report images ----------------------------------------------------------------------


def looks(ws: Workspace) -> list[dict[str, Any]]:
    """All looks at report sets so far, oldest first."""
    return records.read(ws.path(_LOOKS), "a look at a report set", ("candidate", "images"))


def count_look(ws: Workspace, candidate: str, images: tuple[str, ...]) -> int:
    """Record a look at these report images, once per candidate; return the number of the look.

    Looks at a set that shares an image with this set count, too: an added image must not restart the count.
    """
    report, earlier = atomic.digest(list(images)), looks(ws)
    sets = {str(line["images"]): set(line["names"]) for line in earlier if "names" in line}
    overlap = {digest for digest, names in sets.items() if not names.isdisjoint(images)} | {report}
    counted = [(line["candidate"], line["images"]) for line in earlier if line["images"] in overlap]
    if (candidate, report) not in counted:
        names = {} if report in sets else {"names": list(images)}
        records.append(ws.path(_LOOKS), {"candidate": candidate, "images": report, **names})
        counted.append((candidate, report))
    return counted.index((candidate, report)) + 1


# -- the verdict of a night --------------------------------------------------------------------------


def apply_verdict(ws: Workspace, *, promote: bool = True) -> dict[str, Any]:
    """Judge the student; register and promote it when it was accepted.

    Args:
        ws: the workspace.
        promote: False reports what would have happened.

    Returns:
        The verdict with `promoted` (version name, or null) and `decision` in words.

    Raises:
        IntegrityError: evaluation/ judges another student or teacher than the current ones of the workspace.
    """
    verdict, registry = _judge_tonight(ws), Registry(ws.root)
    verdict["promoted"] = None
    kept = f"kept {registry.current()}"
    if not verdict.get("promote"):
        return verdict | {"decision": f"{kept}: {'; '.join(verdict.get('reasons', []))}"}
    if not promote:
        return verdict | {"decision": f"{kept}: promotion is switched off for this run"}
    limit, rounds = ws.params.student_train.max_rounds, registry.rounds(ws.path("models/student"))
    if limit is not None and rounds >= limit:
        text = f"the student is good, but is round {rounds} of auto-labels, and student_train.max_rounds is {limit}"
        return verdict | {"decision": f"{kept}: {text}: the last round does not teach"}
    metrics = {"mean_iou": verdict["gain"]["candidate"], "gain": verdict["gain"]["value"]}
    version = registry.register(ws.path("models/student"), metrics=metrics, verdict=verdict)
    if registry.current().endswith(f"/{version.name}"):
        return verdict | {"decision": f"{version.name} teaches already"}
    if withdrawn := registry.withdrawn(version.name):
        reason = f" ({withdrawn['reason']})" if withdrawn["reason"] else ""
        text = f"{kept}: {version.name} was rolled back by {withdrawn['by'] or 'somebody'}{reason}; "
        return verdict | {"decision": f"{text}`autolabel models promote {version.name}` takes it back"}
    registry.promote(version, by="gate", reason=str(verdict.get("sentence", "")))
    return verdict | {"promoted": version.name, "decision": f"promoted {version.name}"}


def _judge_tonight(ws: Workspace) -> dict[str, Any]:
    """The gate's verdict on models/student against the current teacher, given the looks and A/A trainings so far."""
    stored = atomic.read_json(ws.path("evaluation/verdict.json"))
    weights = weights_of(ws.path("models/student"))
    _check_models(ws, stored, weights)
    if "gain" not in stored:
        return stored  # there is no report set (profile paper-final)
    new = _judged(ws, "student")
    champion, unscored = _champion(ws)
    aa = measured_aa(ws)
    verdict = gate.judge(
        new,
        _judged(ws, str(stored["incumbent"])),
        Index.load(ws.path("data/index/target.parquet")).classes.classes,
        ws.params.evaluate.gate,
        looks=count_look(ws, weights, new.images),
        champion=champion,
        aa_mean_iou=aa.get("mean_iou", []),
        unknown=stored["unknown_lineage"],
        seed=ws.params.evaluate.seed,
    )
    if unscored:
        verdict |= {"promote": False, "reasons": [*verdict["reasons"], unscored]}
    return verdict | {"candidate_weights_sha256": weights, "notes": [*verdict["notes"], *_aa_note(ws, aa)]}


def _check_models(ws: Workspace, stored: dict[str, Any], student: str) -> None:
    """Raise IntegrityError if the student or the teacher has changed since `evaluate`."""
    path, against = ws.path("evaluation/verdict.json"), stored.get("incumbent_weights_sha256")
    hint = "run `dvc repro evaluate`"
    if stored.get("candidate_weights_sha256") != student:
        raise IntegrityError(f"{path}: judged other weights than models/student holds", hint=hint)
    if against is not None and weights_of(ws.incumbent()[1]) not in (against, student):
        raise IntegrityError(f"{path}: judged against another teacher than the one that teaches now", hint=hint)


def _champion(ws: Workspace) -> tuple[gate.Judged | None, str]:
    """Score that `evaluate` gave the pinned reference, under its version name; or the reason why it has no score."""
    champion, metrics = Registry(ws.root).champion(), ws.path("evaluation/metrics.json")
    if champion is None or not metrics.exists():
        return None, ""
    wanted = weights_of(champion.path)
    for name, row in atomic.read_json(metrics)["models"].items():
        if row["weights_sha256"] == wanted:
            return replace(_judged(ws, name), name=champion.name), ""
    if knows_other_classes(champion.path, Index.load(ws.path("data/index/target.parquet")).classes):
        text = "has other classes and cannot be scored: `autolabel models pin VERSION` names another, "
        text += "`rm models/registry/champion.json` none until the next promotion"
    else:
        text = "has not been scored on these images: `dvc repro --force --single-item evaluate`"
    return None, f"the pinned reference {champion.name} {text}"


def _aa_note(ws: Workspace, aa: dict[str, Any]) -> list[str]:
    if ws.params.evaluate.gate.seed_sd is not None or aa.get("recipe") in (None, recipe_digest(ws)):
        return []
    return [
        "the seed variance comes from A/A trainings of another recipe (student_train or the main setting of "
        "evaluate is not what it was): measure it again with `autolabel models aa`"
    ]


def _judged(ws: Workspace, model: str) -> gate.Judged:
    return read_judged(ws.path(f"evaluation/confusions-{model}.npz"), model)
