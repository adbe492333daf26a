"""After `evaluate`: judge the student with everything that earlier nights spent, let it teach once, or say why not.

The stage's own verdict knows one night. Here the looks at the report set are counted (each new candidate that is
held against images that were used before spends alpha), and the seed variance comes from A/A trainings:

    models/registry/looks.jsonl   {"candidate": weights, "images": digest of the report images} a line; the first of
                                  each set has their "names"
    models/registry/aa.json       {"mean_iou": [...], "recipe": digest, ...}, written by `autolabel models aa`
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hmsa_core.config import key_material
from hmsa_core.data.index import Index
from hmsa_core.io import atomic, records
from hmsa_core.io.errors import HmsaError, IntegrityError
from pipeline.checkpoint_folders import knows_other_classes
from pipeline.counts import read_counts
from pipeline.nightly import gate
from pipeline.nightly.registry import Registry
from pipeline.workspace import Workspace

__all__ = ["aa_file", "apply_verdict", "count_look", "judge_tonight", "looks", "measured_aa", "recipe_digest"]

_LOOKS = "models/registry/looks.jsonl"


def aa_file(ws: Workspace) -> Path:
    """Where the A/A trainings' results are kept."""
    return ws.path("models/registry/aa.json")


def measured_aa(ws: Workspace) -> dict[str, Any]:
    """What `autolabel models aa` wrote; {} before it ran.

    Raises:
        IntegrityError: the file is torn, or its figures are none.
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
    """Digest of what A/A trainings have in common: the student's configuration but its seed, and the main setting."""
    config = key_material(ws.params.student_train)
    config.pop("seed")
    return atomic.digest({"student_train": config, "setting": ws.params.evaluate.settings[0].model_dump(mode="json")})


def judge_tonight(ws: Workspace) -> dict[str, Any]:
    """The gate's verdict on models/student against whoever teaches, with looks and A/A runs counted.

    Raises:
        IntegrityError: evaluation/ belongs to other weights than models/student holds.
    """
    stored = atomic.read_json(ws.path("evaluation/verdict.json"))
    weights = atomic.read_json(ws.path("models/student/model.json"))["weights_sha256"]
    if stored.get("candidate_weights_sha256") != weights:
        raise IntegrityError(
            f"{ws.path('evaluation/verdict.json')}: judged other weights than models/student holds",
            hint="run `dvc repro evaluate`",
        )
    _check_incumbent(ws, stored.get("incumbent_weights_sha256"), weights)
    if "gain" not in stored:
        return stored  # unverified: there is no report set (profile paper-final)
    incumbent = "incumbent" if ws.path("evaluation/confusions-incumbent.npz").exists() else "teacher"
    new, blocks = _judged(ws, "student")
    old, _ = _judged(ws, incumbent)
    champion, unscored = _champion(ws)
    aa = measured_aa(ws)
    verdict = gate.judge(
        new,
        old,
        blocks,
        Index.load(ws.path("data/index/target.parquet")).classes.classes,
        ws.params.evaluate.gate,
        looks=count_look(ws, weights, new.images),
        champion=champion,
        aa_mean_iou=aa.get("mean_iou", []),
        seed=ws.params.evaluate.seed,
    )
    if unscored:
        verdict |= {"promote": False, "reasons": [*verdict["reasons"], unscored]}
    return verdict | {"candidate_weights_sha256": weights, "notes": [*verdict.get("notes", []), *_notes(ws, aa)]}


def _check_incumbent(ws: Workspace, judged_against: str | None, candidate: str) -> None:
    """Somebody may have promoted or rolled back since `evaluate`."""
    if judged_against is None:
        return
    teacher = atomic.read_json(ws.teacher() / "model.json")["weights_sha256"]
    if teacher not in (judged_against, candidate):
        raise IntegrityError(
            f"{ws.path('evaluation/verdict.json')}: judged against another teacher than the one that teaches now",
            hint="run `dvc repro evaluate`",
        )


def _champion(ws: Workspace) -> tuple[gate.Judged | None, str]:
    """What `evaluate` scored the pinned reference at, by the name that people type; and why it did not."""
    champion, metrics = Registry(ws.root).champion(), ws.path("evaluation/metrics.json")
    if champion is None or not metrics.exists():
        return None, ""
    wanted = atomic.read_json(champion.path / "model.json")["weights_sha256"]
    for name, row in atomic.read_json(metrics)["models"].items():
        if row["weights_sha256"] == wanted:
            return replace(_judged(ws, name)[0], name=champion.name), ""
    if knows_other_classes(champion.path, Index.load(ws.path("data/index/target.parquet")).classes):
        return None, (
            f"the pinned reference {champion.name} has other classes and cannot be scored: `autolabel models pin "
            "VERSION` names another, `rm models/registry/champion.json` none until the next promotion"
        )
    return None, (
        f"the pinned reference {champion.name} has not been scored on these images: "
        "`dvc repro --force --single-item evaluate`"
    )


def _notes(ws: Workspace, aa: dict[str, Any]) -> list[str]:
    """What the reader of the verdict should know about its evidence."""
    if ws.params.evaluate.gate.seed_sd is not None or aa.get("recipe") in (None, recipe_digest(ws)):
        return []
    return [
        "the seed variance comes from A/A trainings of another recipe (student_train or the main setting of "
        "evaluate is not what it was): measure it again with `autolabel models aa`"
    ]


def _judged(ws: Workspace, model: str) -> tuple[gate.Judged, tuple[str, ...]]:
    path = ws.path(f"evaluation/confusions-{model}.npz")
    names, blocks, confusions = read_counts(path, "names", "blocks", "confusions")
    return gate.Judged(model, confusions, tuple(names.tolist())), tuple(blocks.tolist())


def looks(ws: Workspace) -> list[dict[str, Any]]:
    """All looks at report sets so far, oldest first."""
    return records.read(ws.path(_LOOKS), "a look at a report set", ("candidate", "images"))


def count_look(ws: Workspace, candidate: str, images: tuple[str, ...]) -> int:
    """Number of this look at these report images; a candidate is looked at once on the same ones.

    A set that shares an image with this one counts, too: one image more a night must not start the count anew.
    """
    report, seen = atomic.digest(list(images)), looks(ws)
    sets = {str(line["images"]): set(line["names"]) for line in seen if "names" in line}
    # Of sets without names (looks of an earlier version) nothing is known: they may overlap.
    overlap = {str(line["images"]) for line in seen} - {d for d, names in sets.items() if names.isdisjoint(images)}
    overlap.add(report)
    taken = [(line["candidate"], line["images"]) for line in seen if line["images"] in overlap]
    if (candidate, report) not in taken:
        names = {} if report in sets else {"names": list(images)}
        records.append(ws.path(_LOOKS), {"candidate": candidate, "images": report, **names})
        taken.append((candidate, report))
    return taken.index((candidate, report)) + 1


def apply_verdict(ws: Workspace, *, promote: bool = True, by: str = "gate") -> dict[str, Any]:
    """Judge the student; register and promote it when it was accepted.

    Args:
        ws: the workspace.
        promote: False reports what would have happened.
        by: who decides, for the history.

    Returns:
        The verdict with `promoted` (version name, or null) and `decision` in words.
    """
    verdict = judge_tonight(ws)
    registry = Registry(ws.root)
    verdict["promoted"] = None
    if not verdict.get("promote"):
        verdict["decision"] = f"kept {registry.current()}: {'; '.join(verdict.get('reasons', []))}"
        return verdict
    if not promote:
        verdict["decision"] = f"kept {registry.current()}: promotion is switched off for this run"
        return verdict
    metrics = {"mean_iou": verdict["gain"]["candidate"], "gain": verdict["gain"]["value"]}
    version = registry.register(ws.path("models/student"), role="student", metrics=metrics, verdict=verdict)
    if registry.current().endswith(f"/{version.name}"):
        verdict["decision"] = f"{version.name} teaches already"
        return verdict
    if withdrawn := registry.withdrawn(version.name):
        why = f" ({withdrawn['reason']})" if withdrawn["reason"] else ""
        verdict["decision"] = (
            f"kept {registry.current()}: {version.name} was rolled back by {withdrawn['by'] or 'somebody'}{why}; "
            f"`autolabel models promote {version.name}` takes it back"
        )
        return verdict
    registry.promote(version, by=by, reason=str(verdict.get("sentence", "")))
    verdict["promoted"] = version.name
    verdict["decision"] = f"promoted {version.name}"
    return verdict
