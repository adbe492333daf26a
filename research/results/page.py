"""docs/results.md, from committed files alone: the same files give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import IntegrityError
from pipeline.params import Params
from pipeline.results import how_run
from research.ablation.catalogue import NAMES, make_ablation
from research.ablation.plan import Ablation
from research.results.ablations import ablation_section, tables_of
from research.results.collect import FORMAT
from research.results.evaluations import evaluation_sections
from research.results.provenance import provenance_lines
from research.results.summary import summary_section
from research.results.tables import ONE_SEED, points, span, table

__all__ = ["RUNS", "Sources", "load_run", "results_page"]

RUNS = {
    "demo": ("The demo: generated street scenes", "make demo"),
    "camvid": ("CamVid: real photographs", "make camvid"),
}
_LEGEND = (
    "The control starts as the student does and takes as many steps, on fine labels alone; the student's other half "
    "are pseudo labels, with human coarse labels merged in where `pseudo_label.merge.use_coarse` says so."
)
_STATUS = (
    "Status: `measured`, or `estimate` with too little evidence for a promise: a threshold of the class's own; "
    "`pooled`: from its group's evidence; `withheld`: the target was not reached, all pixels of the class are ignored "
    "([thresholds](thresholds.md))."
)
_INTRO = """# Results

Made by `make results` from committed files (`research/runs`, `evaluations`, `ablations`, `results`); not to be edited
by hand. Each section has its machine, versions and commit; below a table of cells, folded, stand the command, seed,
commit and machine of each. What is not measured says so. Texts below a table are by hand, their figures from the same
files or from where they say. Seeds from 100 on were opened after a freeze, whose code makes more of them
([Seeds](evaluation.md#ablations)).

**How to read it.** Values are points of mean IoU over classes. Intervals are 95 %: blocks of images (a drive, a run of
frames) are drawn, the same for both sides of a difference, and how seeds differ counts by Student's t
([evaluation](evaluation.md)). "shown" means that the interval excludes zero (or the loss that a claim allows),
"contradicted" that it does so the other way round. With one seed an interval covers the images alone, and two trainings
of the same recipe can differ by more than it is wide: there the words are "suggested" and "suggested the other way
round". "Not shown" is not "equal": what the interval holds is open. No interval is corrected for the number of claims;
a line below each table says what is left when all of its differences are asked at once (Holm 1979). All students of
a table share one teacher, its thresholds and its labels. Confirming seeds were read as they came; none that was made
was left out, and no recipe was changed after the first.

**What was chosen on these images.** In a training nothing: lengths are fixed, the last weights are taken, thresholds
come from calibration images. Recipes were: the demo's teacher and student (how many variants stands with each frozen
table), CamVid's form of RMI, its mixing, and the target and region of its thresholds were compared on the report
images, on seeds 0 to 2; the length of CamVid's student and its end on fine labels alone by calibration images, with
the report images in sight (seed 0). The confirming seeds are new trainings on the same images.
How much a choice has flattered a figure can only be seen on images that nobody here has seen
([evaluation](evaluation.md) has the command).
"""
_CHAIN = """## What tests hold instead of numbers

The chain runs all nine stages, then does nothing twice, labels only new images, trains no teacher for a new
threshold, and gets deleted outputs back from DVC's run cache (`tests/chain/test_dvc_tiny.py`). A training that was
killed gives the same bytes (`tests/chain/test_resume_training.py`). IoU agrees with the benchmark's own scripts to
1e-6 on 50 pairs with ignored and absent classes (`tests/unit/hmsa_core/metrics/test_confusion.py`).
Multiply-accumulates are those of the released network (`tests/unit/hmsa_core/models/test_model_structure.py`).
"""


@dataclass(frozen=True)
class Sources:
    """Folders of the committed files."""

    runs: Path
    ablations: Path
    benchmarks: Path
    evaluations: Path

    @classmethod
    def of(cls, repository: Path) -> Sources:
        """Those of a checkout."""
        base = repository / "research"
        return cls(base / "runs", base / "cells", base / "bench" / "results", base / "evaluations")


def results_page(sources: Sources) -> str:
    """The whole page."""
    folder = sources.ablations
    measured = [(ablation, tables_of(folder / ablation.name, ablation)) for ablation in _ablations(folder)]
    lines = [_INTRO, *summary_section(measured)]
    for name, (title, command) in RUNS.items():
        lines += _run_section(sources.runs, name, title, command)
    for path in sorted(sources.runs.glob("*.json")):
        if path.stem not in RUNS:
            lines += _run_section(sources.runs, path.stem, f"Workspace {path.stem}", "dvc repro")
    lines += evaluation_sections(sources.evaluations)
    for ablation, found in measured:
        lines += ablation_section(folder / ablation.name, ablation, found)
    lines += _speed_section(sources.benchmarks)
    return "\n".join([*lines, _CHAIN.rstrip("\n")]) + "\n"


def _ablations(folder: Path) -> list[Ablation]:
    """Those of the demo and of CamVid's two variants; then tables of other profiles that have cells."""
    demo, camvid = Params.of_profile("demo"), Params.of_profile("camvid")
    shifted = _of_variant(camvid, "drive_shift")
    names = [name for name in NAMES if name != "camvid-table"]
    found = [make_ablation(name, demo) for name in names]
    others = sorted(path.name for path in folder.glob("camvid-table-*-[0-9]*"))
    longer = [_of_variant(camvid, *name.rsplit("-", 2)[1:]) for name in others]
    found += [make_ablation("camvid-table", params) for params in (camvid, *longer, shifted)]
    for name in names:
        for path in sorted(folder.glob(f"{name}-camvid*")):
            found.append(_on_camvid(name, path.name.removeprefix(f"{name}-"), camvid))
    return found


def _of_variant(camvid: Params, variant: str, epochs: str = "") -> Params:
    """Profile camvid for a variant of the splits, with the teacher's length that a table's name ends with."""
    target = camvid.data.target.model_copy(update={"variant": variant})
    length = {"epochs": int(epochs)} if epochs else {}
    return camvid.model_copy(
        update={
            "data": camvid.data.model_copy(update={"target": target}),
            "teacher_train": camvid.teacher_train.model_copy(update=length),
        }
    )


def _on_camvid(name: str, workspace: str, camvid: Params) -> Ablation:
    """A table as a workspace of CamVid has it ("camvid", "camvid-drive_shift", "camvid-1280")."""
    parts = workspace.split("-")[1:]
    epochs = parts.pop() if parts and parts[-1].isdigit() else ""
    ablation = make_ablation(name, _of_variant(camvid, parts[0] if parts else "default", epochs))
    told = [f"variant {part}" for part in parts] + ([f"teacher of {epochs} epochs"] if epochs else [])
    title = ", ".join([ablation.title, "CamVid", *told])
    return replace(ablation, title=title, command=f"{ablation.command} WORKSPACE=workspaces/{workspace}")


# ------------------------------------------------------------------------------------------- workspaces


def _run_section(runs: Path, name: str, title: str, command: str) -> list[str]:
    lines = [f"## {title}", ""]
    record = load_run(runs / f"{name}.json")
    if record is None:
        return [*lines, f"Not measured yet: `{command}`, then `make results`.", ""]
    judged = record["judged"]
    seeds = sorted({t["seed"] for t in record["training"].values()})
    one_seed = [ONE_SEED, ""] if len(seeds) == 1 else []
    lines += [
        f"`{record['command']}`; {judged['judged']} report images ({judged['left_out']} left out, a model had learned "
        f"from them); {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}.",
        "",
        *table(("model", "setting", "mIoU", "blocks"), _models(record)),
        "",
        f"{_settings(record)} {_LEGEND}",
        "",
        *table(("difference", "points", "blocks"), _differences(record)),
        "",
        *one_seed,
        *_kept(record),
        "",
        _lengths(record),
        "",
        *_times(record),
        "",
        *provenance_lines([record]),
        "",
    ]
    notes = runs / f"{name}.md"
    return [*lines, notes.read_text("utf-8").strip(), ""] if notes.exists() else lines


_NEEDED = {
    "command",
    "commit",
    "differences",
    "judged",
    "kept",
    "kept_classes",
    "machine",
    "main_setting",
    "models",
    "profile",
    "settings",
    "stage_seconds",
    "training",
    "uncommitted",
    "versions",
}


def load_run(path: Path) -> dict[str, Any] | None:
    """A workspace's collected figures, None where there are none."""
    if not path.exists():
        return None
    record = atomic.read_json(path)
    if record.get("format") != FORMAT or record.get("version") != 1:
        raise IntegrityError(f"{path}: not a run of version 1", hint="collect it again: `autolabel results --collect`")
    if lacking := sorted(_NEEDED - record.keys()):
        raise IntegrityError(f"{path}: has no {lacking[0]!r}", hint="collect it again: `autolabel results --collect`")
    return record


def _models(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (model, setting, span(interval), str(interval["blocks"]))
        for model, found in record["models"].items()
        for setting, interval in found["settings"].items()
    ]


def _settings(record: Mapping[str, Any]) -> str:
    told = [f"`{s['name']}`: {how_run(s)}" for s in record["settings"]]
    return f"{'; '.join(told)}."


def _differences(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(name, span(one, sign=True), str(one["blocks"])) for name, one in record["differences"].items()]


def _kept(record: Mapping[str, Any]) -> list[str]:
    kept = record["kept"]
    target = f" Target: {points(record['target'])} % for each class." if record.get("target") else ""
    lines = [
        f"Threshold `{kept['threshold']}`: {points(kept['precision'])} % of the kept pixels are right, "
        f"{points(kept['coverage'])} % of all are kept" + _where(kept) + f".{target}",
        _STATUS,
        "",
    ]
    rows = [
        (
            name,
            str(row["status"]),
            str(row["threshold"] or "-"),
            _precision(row),
            points(row["coverage"]),
            *(points(_class_iou(record, model, name)) for model in ("teacher", "control", "student")),
        )
        for name, row in record["kept_classes"].items()
    ]
    header = ("class", "status", "threshold", "precision %", "coverage %", "IoU teacher", "control", "student")
    both = _beside(kept.get("beside", {}), "" if "all_pixels" not in kept else ", counted outside of human polygons")
    if "all_pixels" in kept:
        everywhere = kept["all_pixels"]
        lines[0] += (
            f" Inside polygons too: {points(everywhere['precision'])} % right, {points(everywhere['coverage'])} % kept."
        )
        both += _beside(everywhere.get("beside", {}), ", all pixels")
    return [*lines, *table(header, rows), *both]


def _where(kept: Mapping[str, Any]) -> str:
    """Which pixels were counted."""
    return "" if kept.get("region", "all") == "all" else " (counted outside of human polygons, where they are used)"


def _precision(row: Mapping[str, Any]) -> str:
    """Percent with its interval over blocks, where it was recorded."""
    ends = (row.get("lower"), row.get("upper"))
    return points(row["precision"]) + ("" if None in ends else f" [{points(ends[0])}, {points(ends[1])}]")


def _beside(beside: Mapping[str, Any], where: str) -> list[str]:
    """The policy beside one threshold for all classes (chosen on the report images, which the policy never saw)."""
    if not beside.get("classes"):
        return []
    rows = [
        (row["name"], points(row["worst_precision"]), row["worst_class"], points(row["class_mean_coverage"]))
        for row in beside["rows"]
    ]
    classes = ", ".join(beside["classes"])
    told = (
        f"One threshold for all instead, on the classes with one of their own ({classes}){where}; the one that is as "
        "precise is looked for on these very images:"
    )
    return ["", told, "", *table(("", "worst precision %", "of class", "class-mean coverage %"), rows)]


def _class_iou(record: Mapping[str, Any], model: str, name: str) -> float | None:
    found = record["models"].get(model)
    if found is None:
        return None
    value: float | None = found["settings"][record["main_setting"]]["classes"][name][0]
    return value


def _lengths(record: Mapping[str, Any]) -> str:
    told = [
        f"{name.replace('_', '-')} {t['epochs']} epochs ({t['trunk']}, {t['kind']}, {t['loss']}, crops of "
        f"{t['crop'][0]}x{t['crop'][1]})"
        for name, t in record["training"].items()
    ]
    return "Trained: " + "; ".join(told) + "."


def _times(record: Mapping[str, Any]) -> list[str]:
    seconds = record["stage_seconds"]
    if not seconds:
        return ["Times were not recorded."]
    told = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    return [f"Seconds of the stages: {told}; together {sum(seconds.values()) / 60:.1f} minutes."]


# ------------------------------------------------------------------------------------------------ speed


def _speed_section(folder: Path) -> list[str]:
    lines = ["## Speed", ""]
    names = sorted(p.stem for p in folder.glob("*.json"))
    if not names:
        return [*lines, "Not measured yet: `make bench`.", ""]
    return [*lines, f"`make bench`: {', '.join(names)}; the figures are in [benchmarks](benchmarks.md).", ""]
