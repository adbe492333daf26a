"""`autolabel adopt`: how networks of other people are used best on one's images, written as one teacher.

For each network: the map of its classes, how it takes images, its scales; then how all are combined. With labels all of
that is chosen by mean IoU at drawn pixels, without labels by agreement. The figures of the combination are of blocks of
images that took no part in fitting it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import Passes, RuntimeConfig
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.walk import stem_of, walk
from hmsa_core.inference.adopt import fitting
from hmsa_core.inference.adopt.combination import agreeing_weights, combine
from hmsa_core.inference.adopt.fitting import Mapped
from hmsa_core.inference.adopt.samples import Float32, Picture, Pixels, UInt8, View, Views, draw, run, views_of
from hmsa_core.inference.evaluation.labelled_files import Ids, blocks_of, check_labels, label_reader, pairs_of
from hmsa_core.inference.network.predictor import Tiler
from hmsa_core.inference.teachers.classes import class_map
from hmsa_core.inference.teachers.combining import average
from hmsa_core.inference.teachers.networks import Network
from hmsa_core.inference.teachers.run_options import run_options
from hmsa_core.inference.teachers.scores import check_files, picture_names, read_scores
from hmsa_core.inference.teachers.sources import Source, Spec, onnx_metadata, parse
from hmsa_core.inference.teachers.teacher import open_network
from hmsa_core.inference.teachers.teacher_files import Adopted, Member
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import ConfigError, HmsaError, InputError
from hmsa_core.metrics import bootstrap_iou
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.taxonomy import ClassTable, cityscapes

_IMAGES = 40  # at most, for all choices
_LEAST_KEPT = 0.01  # share of the pixels that a threshold worth printing keeps
_BLOCK = 3  # neighbours that intervals and folds keep together, as `autolabel evaluate` does
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_CLOSE = 0.02  # mIoU or kappa by which two ways to take an image cannot be told apart
_TRIED = 8  # images on which ways to take an image are compared
# Ways in which published networks take their images, tried where nothing says it: with ImageNet's mean and deviation,
# as [-1, 1], [0, 1] or [0, 255], or as bytes without the mean (Caffe); each as RGB, and as BGR, as OpenCV reads them.
_NORMALISATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
    {"mean": (0.485, 0.458, 0.408), "std": (1 / 255, 1 / 255, 1 / 255)},
)
_INPUTS = tuple({**how, "order": order} for order in ("rgb", "bgr") for how in _NORMALISATIONS)
_ONCE = Passes((1.0,), flip=False)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """Figures of one member or of the whole on labelled images: mean IoU with its interval, IoU by class, seconds."""

    name: str
    mean_iou: float | None
    interval: tuple[float, float] | None
    iou: dict[str, float | None]
    seconds: float
    how: str  # scales, mirroring, weight


@dataclass(frozen=True)
class Adoption:
    """What was chosen, and why.

    `kept` has coverage and precision of the whole at 0.9 and at the least threshold that is 95 % right (if any is).
    """

    adopted: Adopted
    maps: tuple[tuple[Mapped, ...], ...]
    rows: tuple[Row, ...]
    kept: tuple[tuple[float, float, float], ...]  # threshold, coverage, precision
    certainty: float | None  # that stacking gains on held-out blocks; None = not tried

    @property
    def is_by_labels(self) -> bool:
        """Whether labels chose, not agreement alone."""
        return bool(self.adopted.images)

    def confirmed(self) -> Adoption:
        """The same after a person has looked at classes that labels alone name."""
        return replace(self, adopted=self.adopted.model_copy(update={"unconfirmed": ()}))


@dataclass
class _Candidate:
    """One network while it is looked at."""

    source: Source
    names: tuple[str, ...]
    views: Views
    maps: list[Mapped]
    passes: Passes = _ONCE

    @property
    def targets(self) -> dict[int, int]:
        return fitting.targets_of(self.maps)

    @property
    def chosen(self) -> list[View]:
        return views_of(self.passes)


def adopt_folder(
    teachers: Spec,
    images: Path,
    labels: Path | None,
    classes: ClassTable,
    runtime: RuntimeConfig,
    tell: Tell,
    *,
    ids: Ids = "auto",
) -> Adoption:
    """`adopt` on a folder of images and, perhaps, a folder of their label maps, which hold `ids`; in this process."""
    context = _context(teachers, runtime)
    return adopt(teachers, pictures_of(images, labels, classes, ids, tell), classes, context, tell)


def adopt_pairs(
    teachers: Spec, pairs: Sequence[tuple[str, Path, Path]], classes: ClassTable, runtime: RuntimeConfig, tell: Tell
) -> Adoption:
    """`adopt` on (name, image, label map) of images whose label maps hold ids or colours of `classes`."""
    context = _context(teachers, runtime)
    chosen = [(*pairs[i], block) for i, block in _spread([name for name, _, _ in pairs])]
    pictures = [
        Picture(name, image, partial(read_image, image), partial(read_label, label, classes), block)
        for name, image, label, block in chosen
    ]
    return adopt(teachers, pictures, classes, context, tell)


def _context(teachers: Spec, runtime: RuntimeConfig) -> JobContext:
    """This process as a job, once the networks' files are there."""
    sources = parse(teachers)
    for number, source in enumerate(sources):
        if source in sources[:number]:
            raise ConfigError(f"{source}: is given twice", hint="name it once: `adopt` weighs the networks")
        if source.adopted is not None:
            raise ConfigError(f"{source}: is what `adopt` has written", hint="give the networks themselves")
        _ = source.files  # whether they are there
    return JobContext.alone(runtime)


def adopt(
    teachers: Spec, pictures: Sequence[Picture], classes: ClassTable, context: JobContext, tell: Tell
) -> Adoption:
    """Choose how the networks are used.

    Args:
        teachers: what people write (`teachers.sources`).
        pictures: some images, with labels or all without.
        classes: ours.
        context: device, threads and precision of the networks.
        tell: gets a line for each step.

    Raises:
        HmsaError: a network that cannot be used, in one line.
    """
    sources, pixels = parse(teachers), draw(pictures)
    for source in sources:  # one that cannot be used stops before another one has run for long
        if source.family == "scores":
            check_files(source, [one.name for one in pictures])
        else:
            open_network(source, context, is_single=True)
    found = [_look_at(source, pictures, pixels, classes, context, tell) for source in sources]
    members = [fitting.apply(one.views.probabilities(one.chosen), one.targets, classes.num_classes) for one in found]
    tell("choose how the networks are combined")
    if pixels.is_labelled and len(pixels.blocks) == 1:
        tell("too few labelled images to hold any out: the figures are of those that chose; give 20 or more")
    if pixels.is_labelled:
        combination = combine(members, pixels)
        weights, temperatures = combination.weights, combination.temperatures
        whole, stacking, certainty = combination.held_out, combination.stacking, combination.certainty
    else:
        weights, temperatures = agreeing_weights(members), (1.0,) * len(members)
        whole, stacking, certainty = average(members, list(weights)), None, None
    used = [i for i, weight in enumerate(weights) if weight > 0]
    adopted = Adopted(
        classes=classes.classes,
        class_table=classes.to_json(),
        members=tuple(_member(found[i], classes, weights[i], temperatures[i]) for i in used),
        stacking=stacking,
        images=tuple(sorted(sha256_file(one.file) for one in pictures)) if pixels.is_labelled else (),
        unconfirmed=tuple(
            str(found[i].source) for i in used if {m.why for m in found[i].maps if m.target is not None} == {"labels"}
        ),
    )
    seconds = [one.views.time(one.chosen) for one in found]
    rows = [
        _row(str(one.source), member, pixels, classes, spent, _how(one, weight))
        for one, member, spent, weight in zip(found, members, seconds, weights, strict=True)
    ]
    how = "stacked by class" if stacking else "weighted mean"
    rows.append(_row("all together", whole, pixels, classes, sum(seconds[i] for i in used), how))
    maps = tuple(tuple(one.maps) for one in found)
    return Adoption(adopted, maps, tuple(rows), _kept(whole, pixels), certainty)


def pictures_of(images: Path, labels: Path | None, classes: ClassTable, ids: Ids, tell: Tell) -> list[Picture]:
    """At most `_IMAGES` images of a folder, evenly spread; with labels those that have one.

    Raises:
        InputError: no image, no pair, or a label map of other proportions. DecodeError: one that holds no classes.
    """
    if labels is None:
        files = list(walk(images).paths())
        if not files:
            raise InputError(f"--images {images}: no JPEG, PNG, WebP or TIFF file in this folder")
        names = [stem_of(path) for path in files]
        return [Picture(names[i], files[i], partial(read_image, files[i]), None, block) for i, block in _spread(names)]
    classes = classes.of_train_ids() if ids == "train" else classes
    read = label_reader(classes, colours=ids == "colours")
    pairs, _, notes = pairs_of(images, labels, train_ids=ids == "train")
    chosen = [(pairs[i], block) for i, block in _spread([one.name for one in pairs])]
    for note in (*notes, *check_labels([one for one, _ in chosen], classes, read, ids)):
        tell(note)
    return [
        Picture(Path(one.name).name, Path(one.image), partial(read_image, one.image), partial(read, one.label), block)
        for one, block in chosen
    ]


def _spread(names: Sequence[str]) -> list[tuple[int, str]]:
    """Places of at most `_IMAGES` names, evenly spread, and the block of each."""
    places = np.unique(np.linspace(0, len(names) - 1, min(len(names), _IMAGES)).round().astype(int)).tolist()
    return list(zip(places, blocks_of([names[i] for i in places], _BLOCK), strict=True))


def _look_at(
    source: Source, pictures: Sequence[Picture], pixels: Pixels, classes: ClassTable, context: JobContext, tell: Tell
) -> _Candidate:
    """Run one network and choose its map, its input and its scales."""
    if source.family == "checkpoint":
        return _checkpoint(source, pictures, pixels, classes, context)
    by_table = class_map(source, classes).targets if source.table.classes else None
    source = replace(source, given=source.table.model_copy(update={"classes": {}}))  # they are what is looked for
    if source.family == "scores":
        channels = source.names or picture_names(source)
        if not isinstance(channels, int):
            source = replace(source, given=source.table.model_copy(update={"names": channels}))
        views = run(pictures, [View(1.0)], lambda one, image, _: read_scores(source, one.name, channels, image))
    else:
        network = _best_input(source, pictures, classes, context, tell)
        source = network.source
        scales = [1.0] if network.is_fixed else _scales(network, pictures[0], tell)
        tell(f"{source}: run at {', '.join(f'{scale:g}' for scale in scales)} times the size, and mirrored")
        views = _run_network(network, pictures, [View(scale, flip) for scale in scales for flip in (False, True)])
        if network.gives != source.table.output and network.gives == "probabilities":
            tell(f"{source}: its scores lie in [0, 1]: taken for probabilities")
            source = replace(source, given=source.table.model_copy(update={"output": network.gives}))
    one = _candidate(source, views, pixels, classes)
    if source.family != "scores":
        one.passes = (
            fitting.choose_views(views, one.targets, pixels, classes.num_classes)
            if pixels.is_labelled
            else fitting.agreeing_scales(views)
        )
    if by_table is not None and by_table != one.targets:
        other = [m.name for m in one.maps if by_table.get(m.channel) != m.target]
        tell(f"{source}: classes were looked for anew; in {source.table_path} these are mapped otherwise: {other}")
    return one


def _checkpoint(
    source: Source, pictures: Sequence[Picture], pixels: Pixels, classes: ClassTable, context: JobContext
) -> _Candidate:
    """A checkpoint of this package runs as it says itself: attention was trained for its scales."""
    passes = run_options(source.path).passes
    tiler = Tiler(open_network(source, context, is_single=False))
    views = run(pictures, [View(1.0)], lambda _one, image, _view: tiler.probabilities(image, passes))
    found = _candidate(source, views, pixels, classes)
    # The views that were run stand for all of its scales together.
    found.passes = passes
    views.scores.update(dict.fromkeys(found.chosen, views.scores[View(1.0)]))
    views.seconds.update(dict.fromkeys(found.chosen, views.seconds[View(1.0)] / len(found.chosen)))
    return found


def _candidate(source: Source, views: Views, pixels: Pixels, classes: ClassTable) -> _Candidate:
    """With the map of its classes, by its best single scale."""
    channels = next(iter(views.scores.values())).shape[1]
    names = _names(source, channels)
    tries = [v for v in views.scores if not v.mirrored]
    counts = [fitting.overlap(views.scores[view].astype(np.float32), pixels, classes.num_classes) for view in tries]
    for one in counts if len(source.names) == 1 else ():
        one[1] = 0  # what is not a sigmoid's class is no class
    maps = [fitting.map_classes(names, one, classes) for one in counts]

    def score(i: int) -> float:
        if not counts[i].any():
            return fitting.agreement(views, tries[i].scale)
        return fitting.reached(views, [tries[i]], fitting.targets_of(maps[i]), pixels, classes.num_classes)

    best = max(range(len(tries)), key=score)
    if all(one.target is None for one in maps[best]):
        if counts[best].any():
            raise ConfigError(
                f"{source}: none of its {channels} classes lies where the labels show one of {classes.name}",
                hint="are these the labels of these images, and does the table next to it say how it takes images?",
            )
        raise ConfigError(
            f"{source}: none of its {channels} classes is one of {classes.name} by its name",
            hint="give --labels, so that classes are found by overlap, or `names:` in the table next to it",
        )
    return _Candidate(source, names, views, maps[best])


def _names(source: Source, channels: int) -> tuple[str, ...]:
    if names := source.names + ("rest",) * (len(source.names) == 1):  # a sigmoid's class, and the rest
        if len(names) != channels:
            raise ConfigError(
                f"{source}: gives {channels} classes, but has {len(source.names)} names",
                hint=f"write all names in the order of its classes, `names: [...]`, in {source.table_path}",
            )
        return names
    known = cityscapes().classes  # their number tells them where a network names none; labels check it
    return known if channels == len(known) else ()


def _scales(network: Network, picture: Picture, tell: Tell) -> list[float]:
    """Scales that a network can run at; some can at the size of their training alone, whatever their input says."""
    fit = []
    for scale in SCALES:
        try:
            _run_network(network, [picture], [View(scale)])
        except ConfigError as error:
            if scale == 1:
                raise
            tell("; ".join(filter(None, (f"scale {scale:g} is left out: {error.message}", error.hint))))
        else:
            fit.append(scale)
    return fit


def _run_network(network: Network, pictures: Sequence[Picture], views: Sequence[View]) -> Views:
    tiler = Tiler(network)

    def predict(_: Picture, image: UInt8, view: View) -> Float32:
        given = np.ascontiguousarray(image[:, ::-1]) if view.mirrored else image
        found = tiler.probabilities(given, Passes((view.scale,), flip=False))
        return found[:, :, ::-1] if view.mirrored else found

    return run(pictures, views, predict)


def _best_input(
    source: Source, pictures: Sequence[Picture], classes: ClassTable, context: JobContext, tell: Tell
) -> Network:
    """Open a network that takes images as fits best, where neither the files nor the table say how."""
    if source.family != "onnx" or _says_input(source):
        return _opened(source, context)
    some = pictures[:: max(1, len(pictures) // _TRIED)]
    drawn = draw(some)
    needed = [View(1.0)] if drawn.is_labelled else [View(1.0), View(1.0, mirrored=True)]
    scored: list[tuple[float, str, Network]] = []
    failed: dict[str, tuple[HmsaError, list[str]]] = {}
    is_given = "order" in source.table.model_fields_set
    for how in (one for one in _INPUTS if not is_given or one["order"] == source.table.order):
        tried = replace(source, given=source.table.model_copy(update=how))
        try:
            network = _opened(tried, context)
            if network.takes_bytes and scored and how["order"] == scored[-1][2].source.table.order:
                continue
            views = _run_network(network, some, needed)
            one = _candidate(tried, views, drawn, classes)
        except HmsaError as error:
            failed.setdefault(error.message, (error, []))[1].append(_said(tried))
            continue
        if drawn.is_labelled:
            score = fitting.reached(views, needed, one.targets, drawn, classes.num_classes)
        else:
            score = fitting.agreement(views, 1.0)
        scored.append((score, _said(tried, is_bytes=network.takes_bytes), network))
    if not scored:
        raise next(iter(failed.values()))[0]
    for message, (_, ways) in failed.items():
        tell(f"with images as {', '.join(ways)}: {message}")
    reached, taken, best = max(scored, key=lambda one: one[0])
    trials = ", ".join(f"{said} {score:.3f}" for score, said, _ in scored)
    by = "mIoU" if drawn.is_labelled else "agreement with the mirror image"
    tell(f"{source}: nothing says how it takes an image; tried, by {by}: {trials}; taken: {taken}")
    if near := [said for score, said, one in scored if one is not best and score > reached - _CLOSE]:
        more = "" if drawn.is_labelled else ", or give --labels"
        tell(f"{source}: {near[0]} fits about as well: write mean, std and order in {source.table_path}{more}")
    return best


def _opened(source: Source, context: JobContext) -> Network:
    network = open_network(source, context, is_single=True)  # what a network of one size needs; others take any scale
    assert isinstance(network, Network)  # noqa: S101 - no checkpoint comes here
    network.is_tried = True
    return network


def _says_input(source: Source) -> bool:
    known = onnx_metadata(source.path, source.table)
    return bool(source.table.mean or source.table.std or known.get("mean") or known.get("std"))


def _said(source: Source, *, is_bytes: bool = False) -> str:
    if is_bytes:  # no mean is taken from them
        return f"bytes {source.table.order}"
    mean, std = source.table.mean, source.table.std
    if mean is None or std is None:
        return f"ImageNet's mean {source.table.order}"
    low, high = ((value - m) / s for value, m, s in ((0.0, mean[0], std[0]), (1.0, mean[0], std[0])))
    return f"[{low:.3g}, {high:.3g}] {source.table.order}"


def _member(one: _Candidate, classes: ClassTable, weight: float, temperature: float) -> Member:
    """The member as the file says it; its channels by number, because names may repeat."""
    table: dict[str, Any] = one.source.table.model_dump(exclude_defaults=True)
    is_identity = one.source.family == "checkpoint" and one.names == classes.classes
    if not is_identity:
        table["classes"] = {channel: classes.classes[target] for channel, target in sorted(one.targets.items())}
    spec = str(replace(one.source, path=one.source.path.resolve(), given=None, map=None))
    how = {
        "teacher": spec,
        "scales": one.passes.scales,
        "flip": one.passes.flip,
        "weight": weight,
        "temperature": temperature,
    }
    return Member.model_validate(table | how)


def _how(one: _Candidate, weight: float) -> str:
    if weight == 0:
        return "left out"
    scales = ", ".join(f"{scale:g}" for scale in one.passes.scales)
    return f"{{{scales}}}{' + flip' if one.passes.flip else ''}, weight {weight:g}"


def _row(name: str, predicted: Float32, pixels: Pixels, classes: ClassTable, seconds: float, how: str) -> Row:
    if not pixels.is_labelled:
        return Row(name, None, None, {}, seconds, how)
    counts = fitting.confusions(predicted, pixels)
    # Only classes that occur in the truth are scored: the others' columns count as pixels without a class.
    known = np.flatnonzero(counts.sum((0, 2)))
    others = np.delete(counts[:, known], known, 2).sum(2, keepdims=True)
    interval = bootstrap_iou(np.concatenate([counts[:, known][:, :, known], others], 2), list(pixels.blocks))
    rows: Mapping[str, Any] = interval.to_json([classes.classes[c] for c in known])["classes"]
    iou = {cls: values[0] for cls, values in rows.items()}
    ends = (interval.low, interval.high)
    return Row(name, interval.value, None if np.isnan(ends).any() else ends, iou, seconds, how)


def _kept(predicted: Float32, pixels: Pixels) -> tuple[tuple[float, float, float], ...]:
    """(threshold, coverage, precision) at 0.9 and at the least threshold of a grid that is 95 % right."""
    if not pixels.is_labelled:
        return ()
    known = pixels.known
    best = predicted.max(1)[known]
    right = predicted.argmax(1)[known] == pixels.truth[known]

    def at(threshold: float) -> tuple[float, float, float]:
        keep: NDArray[np.bool_] = (best >= threshold) & (best > 0)  # a pixel without any class is never kept
        return threshold, float(keep.mean()), float(right[keep].mean()) if keep.any() else 0.0

    rows = (at(step / 100) for step in range(100))
    precise = next((row for row in rows if row[1] >= _LEAST_KEPT and row[2] >= 0.95), None)
    return (at(0.9), *((precise,) if precise else ()))
