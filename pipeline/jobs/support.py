"""Training, labelling and scoring as jobs in keyed work folders: keys, finished work, publishing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core import __version__
from hmsa_core.config import InferConfig, RuntimeConfig, TrainConfig, key_material
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import Spec, only_checkpoint, parse, resolved
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError, IntegrityError
from hmsa_core.io.trees import new_tree, publish_tree
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.models import read_meta
from hmsa_core.result_keys import evaluate_material, infer_material, train_material
from hmsa_core.spec import (
    EvaluateSpec,
    EvaluationSetting,
    FineData,
    InferSpec,
    JobSpec,
    PseudoData,
    Selection,
    TrainSpec,
    ValidationData,
)
from hmsa_core.taxonomy import ClassTable
from pipeline.jobs import launcher
from pipeline.workspace import keys
from pipeline.workspace.table import VERSIONS
from pipeline.workspace.workspace import Workspace

INDEX = "data/index"
_LOG = logging.getLogger(__name__)


def role_index(ws: Workspace, role: str) -> Path:
    """Index of the target images of one role: a separate file, so that DVC re-runs only the stages that read it."""
    return ws.path(f"{INDEX}/{role}.parquet")


def fine_data(ws: Workspace, name: str = "learn") -> FineData:
    """Images that trainings learn from by fine labels: "learn" of the target set, or "pretrain"."""
    centroids = ws.path(f"{INDEX}/centroids-{'target' if name == 'learn' else name}.parquet")
    return FineData(
        selection=Selection(index=role_index(ws, name), roles=("learn",), kinds=("fine",)), centroids=centroids
    )


def weights_of(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights, from its JSON."""
    return str(read_meta(checkpoint)["weights_sha256"])


def labelling_teacher(ws: Workspace) -> tuple[str, ...]:
    """Teacher for `auto-infer` and for measurements of its labels: `auto_infer.teacher`, else the workspace's teacher.

    Students always start from, and are judged against, the workspace's teacher.
    """
    chosen = ws.params.auto_infer.teacher
    return (str(ws.teacher()),) if chosen is None else resolved(chosen, ws.resolve)


def run_job(ws: Workspace, spec: JobSpec) -> None:
    """Run a job; the job answers stop requests meanwhile."""
    with ws.job():
        launcher.run_job(spec, stop=ws.stop)


def provenance(stage: str) -> dict[str, Any]:
    """Fields that every result records besides its inputs: stage and versions."""
    return {"stage": stage, "code_version": f"{__version__}, {stage} {VERSIONS[stage]}"}


def train_model(
    ws: Workspace,
    stage: str,
    job: str,
    config: TrainConfig,
    fine: FineData,
    *,
    pseudo: tuple[PseudoData, ...] = (),
    init_from: Path | None = None,
    teacher: tuple[str, ...] | None = None,
    validate_every: int = 0,
) -> Path:
    """Start or continue a training, or find it finished; return its work folder, with `model/` in it.

    `teacher` names the maker of the auto-labels where `init_from` did not make them.
    """
    spec = TrainSpec(
        work=ws.work(stage),
        roots=ws.roots,
        stage=stage,
        # `control` and similar settings belong to the stage: the job gets the training settings alone.
        config=TrainConfig.model_validate(config.model_dump(include=set(TrainConfig.model_fields))),
        fine=fine,
        pseudo=pseudo,
        init_from=init_from,
        teacher=teacher,
        tracking=ws.path("work"),
        validation=_validation(ws, validate_every),
        lineage=provenance(stage) | {"job": job},
    )
    index = Index.load(fine.selection.index)
    material = train_material(spec, index.classes, index.select(**fine.selection.filters()))
    work = keys.open_work(ws.work(stage), job, {"version": VERSIONS[stage], **material})
    if not _is_trained(work / "model"):
        run_job(ws, spec.model_copy(update={"work": work}))
    return work


def _validation(ws: Workspace, every: int) -> ValidationData | None:
    """Scores for the log at ends of epochs, on the calibration images, which no training learns from."""
    if not every:
        return None
    chosen = Selection(index=role_index(ws, "calibrate"), roles=("calibrate",), kinds=("fine",))
    return ValidationData(selection=chosen, every_epochs=every)


def _is_trained(model: Path) -> bool:
    if not (model / "model.json").exists():
        return False
    if atomic.sha256_file(model / "model.safetensors") != weights_of(model):
        raise IntegrityError(
            f"{model / 'model.safetensors'}: changed since it was written",
            hint=f"delete {model.parent} and run the stage again",
        )
    return True


def check_classes(ws: Workspace, what: str, held: ClassTable, wanted: ClassTable) -> None:
    """Raise a ConfigError where a teacher, or labels of one, have other class names than the fine labels."""
    if held.classes == wanted.classes:
        return
    names = (", ".join(table.classes[:6]) + (", ..." if table.num_classes > 6 else "") for table in (held, wanted))
    raise ConfigError(
        f"{what}: knows the classes {next(names)}; the fine labels have {next(names)}",
        hint=(
            "undo the edit of the class file, or return to a teacher of these classes (`autolabel models rollback`)"
            if ws.is_promoted()
            else "the teacher is older than the last edit of the class file: `dvc repro` trains it anew"
        ),
    )


def evaluate_model(
    ws: Workspace,
    stage: str,
    job: str,
    checkpoint: Path,
    index: Path,
    names: tuple[str, ...],
    settings: tuple[EvaluationSetting, ...],
    runtime: RuntimeConfig,
    *,
    details: bool = False,
) -> Path:
    """Count confusions of a checkpoint, one `<setting>.npz` per setting, and return their folder."""
    spec = EvaluateSpec(
        work=ws.work(stage),
        roots=ws.roots,
        checkpoint=checkpoint,
        settings=settings,
        runtime=runtime,
        selection=Selection(index=index, names=names),
        details=details,
        lineage=provenance(stage),
    )
    listed = Index.load(index)
    material = evaluate_material(spec, listed.classes, listed.select(names=names))
    work = keys.open_work(ws.work(stage), job, {"version": VERSIONS[stage], **material})
    if not (work / "summary.json").exists():
        run_job(ws, spec.model_copy(update={"work": work}))
    return work


def infer_store(
    ws: Workspace, stage: str, job: str, config: InferConfig, teacher: Spec, index: Path, names: tuple[str, ...]
) -> Path:
    """Label the images that a raw store below `work/` lacks; return the store's folder.

    The key does not hold the wanted images: new ones are appended to the store of the same teacher, classes and
    settings. A store that holds changed or no longer wanted images is left as it is, and another store is begun.
    """
    listed = Index.load(index)
    wanted = {s.name: s.image_sha256 for s in listed.select(names=names)}
    sources, alone = parse(teacher), only_checkpoint(teacher)
    classes = (ClassTable.of_meta(read_meta(alone)) if alone else None) or listed.classes
    check_classes(ws, f"{alone}", classes, listed.classes)
    # The key holds the digest of the stage's setting `teacher`; the job gets the teacher separately from its settings.
    plain = InferConfig.model_validate(config.model_dump(include=set(InferConfig.model_fields)))
    kind = "" if alone is None else str(read_meta(alone)["kind"])
    material = {
        "version": VERSIONS[stage],
        # Precision as the settings name it; device, threads and shards too, so that one store's labels are made alike.
        **infer_material(plain, sources, classes, kind=kind, precision=plain.runtime.precision),
        "runtime": key_material(plain.runtime),
        "images_per_shard": plain.images_per_shard,
    }
    work = keys.open_work(ws.work(stage), job, material)
    held = _images_of(work / "store") | _planned(work / "plan.json")
    if any(wanted.get(name) != sha for name, sha in held.items()):
        work = keys.open_work(ws.work(stage), job, material | _begun(ws.work(stage), job, material, wanted))
        held = _images_of(work / "store")
    if held != wanted or not _is_whole(work / "store") or left_out(work / "store"):
        run_job(
            ws,
            InferSpec(
                work=work,
                roots=ws.roots,
                config=plain,
                teacher=tuple(str(source) for source in sources),
                selection=Selection(index=index, names=names),
                lineage=provenance(stage),
                engine=ws.params.runtime.engine,
            ),
        )
    return work / "store"


def _begun(folder: Path, job: str, material: dict[str, Any], wanted: dict[str, str]) -> dict[str, str]:
    """Digest of the images that a store began with: it separates stores of the same teacher and settings.

    The newest store that holds only wanted images goes on growing; without one, a new store begins.
    """
    taken = []
    for key in reversed(keys.used(folder, job)):
        described = atomic.read_json(folder / key / "key.json")
        same = {name: value for name, value in described.items() if name not in ("job", "images")} == material
        if same and "images" in described:
            held = _images_of(folder / key / "store") | _planned(folder / key / "plan.json")
            if all(wanted.get(name) == sha for name, sha in held.items()):
                return {"images": str(described["images"])}
            taken.append(described["images"])
    images = atomic.digest(sorted(wanted.items()))
    while images in taken:  # a store that began with these images has grown since
        images = atomic.digest(images)
    return {"images": images}


def _images_of(store: Path) -> dict[str, str]:
    """Images that a finished store accounts for: labelled, or left out with a reason."""
    if not (store / "manifest.json").exists():
        return {}
    return LabelStore(store, read_manifest(store)).pictures()


def left_out(store: Path) -> dict[str, str]:
    """{name: reason} of images that a finished store could not label; the job checks whether they were restored."""
    if not (store / "manifest.json").exists():
        return {}
    return {str(row["name"]): str(row["reason"]) for s in read_manifest(store)["shards"] for row in s["skipped"]}


def _planned(plan: Path) -> dict[str, str]:
    if not plan.exists():
        return {}
    shards = atomic.read_json(plan).get("shards", [])
    return {n: h for s in shards for n, h in zip(s["names"], s["image_sha256s"], strict=True)}


def _is_whole(store: Path) -> bool:
    """Whether all files of a finished store are there, of the right size (digests are checked where they are read)."""
    try:
        return not LabelStore.open(store).problems
    except HmsaError:
        return False


def record_skip(ws: Workspace, place: str, reason: str) -> None:
    """Write the reason why an output is empty to skipped.json in the output's folder."""
    with new_tree(ws.path(place)) as out:
        atomic.write_json(out / "skipped.json", {"reason": reason})


def publish_checkpoint(ws: Workspace, model: Path, target: str) -> None:
    """Hard-link a checkpoint folder to the path of an output."""
    publish_tree(model, ws.path(target), last=("model.json",))


def speed_file(ws: Workspace, stage: str) -> Path:
    """File with images per second, waiting and memory of each training of the stage."""
    return ws.path(f"work/times/{stage}-training.json")


def warn(stage: str, text: str) -> None:
    """Log a warning for the user, with the stage's name in front."""
    _LOG.warning("%s: %s", stage, text)


def write_metrics(ws: Workspace, stage: str, values: Mapping[str, Any]) -> None:
    """Write metrics/<stage>.json for `dvc metrics show` and `diff`, without times, which differ in every run."""
    atomic.write_json(ws.path(f"metrics/{stage}.json"), dict(values))
