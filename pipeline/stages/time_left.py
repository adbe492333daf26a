"""Estimate how long the chain will still take: megapixels of each stage through a network, and the speed so far.

No result depends on the estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hmsa_core.data.index import Index, Sample
from hmsa_core.io import atomic
from pipeline.jobs.support import INDEX, speed_file
from pipeline.workspace.params import Params
from pipeline.workspace.table import STAGES, section_of
from pipeline.workspace.work import crops, megapixels
from pipeline.workspace.workspace import Workspace

Images = Mapping[str, Sequence[Sample]]
_LEARN_FROM = {"teacher-pretrain": "pretrain", "teacher-train": "learn", "student-train": "learn"}
_KNOWN_FROM = 0.15  # share of the work that has to be done before an estimate is given


def seconds_left(ws: Workspace, after: str) -> float | None:
    """Seconds from the end of stage `after` to the end of the chain; None while too little is done for an estimate."""
    if not ws.path(INDEX).exists():  # a stage that needs no images was run by hand
        return None
    images = images_of(ws)
    work = work_of(ws.params, images)
    ended, ahead = STAGES[: STAGES.index(after) + 1], STAGES[STAGES.index(after) + 1 :]
    timed = [stage for stage in ended if work[stage]]
    if not all(_times(ws, stage).exists() for stage in timed):
        return None
    done, left = sum(work[stage] for stage in ended), sum(work[stage] for stage in ahead)
    if not done or done < _KNOWN_FROM * (done + left):
        return None
    return left * sum(_seconds(ws, stage, images) for stage in timed) / done


def _times(ws: Workspace, stage: str) -> Path:
    return ws.path(f"work/times/{stage}.json")


def _seconds(ws: Workspace, stage: str, images: Images) -> float:
    """Seconds of the stage's last run; for a training that was resumed, the time of the whole by its logged speed."""
    seconds, speeds = float(atomic.read_json(_times(ws, stage))["seconds"]), speed_file(ws, stage)
    if stage not in _LEARN_FROM or not speeds.exists():
        return seconds
    count = crops(len(images[_LEARN_FROM[stage]]), getattr(ws.params, section_of(stage)))
    runs = [float(run["images_per_s"]) for run in atomic.read_json(speeds).values() if run]
    return max(seconds, sum(count / speed for speed in runs))


def work_of(params: Params, images: Images) -> dict[str, float]:
    """Megapixels of each stage through networks of this project: another network that labels has another speed."""
    sizes = {name: [(image.height, image.width) for image in found] for name, found in images.items()}
    work = megapixels(params, sizes)
    return work if params.auto_infer.teacher is None else work | {"calibrate": 0.0, "auto-infer": 0.0}


def images_of(ws: Workspace) -> Images:
    """The images that stages work on, by index; of unlabelled ones all, else those with fine labels."""
    names = ("pretrain", "learn", "calibrate", "report", "unlabelled")
    indexes = {name: Index.load(ws.path(f"{INDEX}/{name}.parquet")) for name in names}
    fine = {name: index.select(kinds=("fine",)) for name, index in indexes.items()}
    pretrain = indexes["pretrain"].select(roles=("learn",), kinds=("fine",))
    return fine | {"pretrain": pretrain, "unlabelled": indexes["unlabelled"].samples}
