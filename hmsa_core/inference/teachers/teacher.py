"""`Teacher`: probabilities of our classes for an image, whoever gives them; opened from what people write.

Multi-scale and mirroring are applied here to every network that takes images of any size; finished scores are what
they are. An ensemble is the mean of its members' probabilities.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from hmsa_core.config import Passes
from hmsa_core.inference.network.predictor import (
    Engine,
    Float32,
    Labelled,
    Predictor,
    Tiler,
    UInt8,
    first_of,
    load_predictor,
    prepare_process,
)
from hmsa_core.inference.teachers.classes import ClassMap, class_map
from hmsa_core.inference.teachers.combining import combine
from hmsa_core.inference.teachers.networks import HuggingFaceNetwork, Network, OnnxNetwork
from hmsa_core.inference.teachers.scores import check_files, picture_names, read_scores
from hmsa_core.inference.teachers.sources import Source, only_checkpoint, parse
from hmsa_core.inference.teachers.teacher_files import Adopted
from hmsa_core.io.errors import ConfigError
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.taxonomy import IGNORE, ClassTable

_LOG = logging.getLogger(__name__)
_CERTAIN = 0.9999


class Teacher(ABC):
    """What labels images.

    Attributes:
        classes: of the labels.
        kind: of a checkpoint its fusion; else the family, or "ensemble".
        precision: that it computes in.
        sources: what it was opened from.
        mappings: from the classes of teachers of other tools to ours.
    """

    classes: ClassTable
    kind: str
    precision: str
    sources: tuple[Source, ...]
    mappings: tuple[ClassMap, ...] = ()

    @abstractmethod
    def predict(self, name: str, image: UInt8) -> Float32:
        """Probabilities of our classes, C x H x W float32; what is ignored is in none of them.

        Args:
            name: of the image in the store.
            image: uint8 HxWx3 RGB.
        """

    def label(self, name: str, image: UInt8) -> Labelled:
        """Most probable class, uint8 HxW (255: none; the lower wins a tie), and its probability, float32 HxW."""
        return self.begin(name, image)()

    def begin(self, name: str, image: UInt8) -> Callable[[], Labelled]:
        """Begin `label`; the function that is returned waits for a GPU, so that the next image can begin before."""
        label = _best_of(self.predict(name, image))
        return lambda: label

    def forced(self, _image: UInt8) -> int | None:
        """Side of the tiles that lack of memory forced on images of this size; None where it did not."""
        return None

    def check(self, names: Sequence[str]) -> None:  # noqa: B027  # most can label any image
        """Before the first image is labelled: InputError where an image cannot be."""

    def facts(self) -> list[dict[str, Any]]:
        """What the lineage of labels holds of teachers of other tools: files' digests and the class map."""
        return [_facts(mapping) for mapping in self.mappings]


def _best_of(probabilities: Float32) -> Labelled:
    best = probabilities.max(0)
    return np.where(best > 0, first_of(probabilities, best), np.uint8(IGNORE)), np.minimum(best, 1)


class NetworkTeacher(Teacher):
    """A network at several scales: a checkpoint of this package, or a network of another tool.

    Args:
        engine: the network.
        passes: scales and mirroring.
        classes: a checkpoint's own classes, which it labels with when it is alone; else the map to ours.
    """

    def __init__(self, engine: Engine, passes: Passes, classes: ClassTable | ClassMap) -> None:
        self._passes, self.precision = passes, engine.precision
        if isinstance(classes, ClassMap):
            self.classes, self.mappings = classes.classes, (classes,)
        else:
            self.classes = classes
        self.kind = self.mappings[0].source.family if isinstance(engine, Network) else engine.kind
        self._first = _FirstImages(self.mappings[0]) if isinstance(engine, Network) else None
        self._tiler = Tiler(engine)

    def predict(self, _name: str, image: UInt8) -> Float32:
        """Probabilities of our classes."""
        found = self._tiler.probabilities(image, self._passes)
        ours = self.mappings[0].apply(found) if self.mappings else found
        if self._first is not None and self._first.left:
            self._first.add(*_best_of(ours))
        return ours

    def begin(self, name: str, image: UInt8) -> Callable[[], Labelled]:
        """Begin `label`; where the classes are ours, a few rows at a time: probabilities never exist as a whole."""
        if self.mappings and not self.mappings[0].is_identity:
            return super().begin(name, image)
        wait = self._tiler.begin(image, self._passes)
        if not self.mappings:
            return wait
        self.mappings[0].check(self._tiler.predictor.num_classes)
        return wait if self._first is None else partial(self._first.with_result_of, wait)

    def forced(self, image: UInt8) -> int | None:
        """Side of the tiles."""
        return self._tiler.forced(image)


class _FirstImages:
    """What a network of another tool gives for its first images: signs that it is run wrongly are one warning."""

    def __init__(self, mapping: ClassMap) -> None:
        self._mapping, self.left, self._seen, self._least = mapping, 3, set[int](), 1.0

    def with_result_of(self, wait: Callable[[], Labelled]) -> Labelled:
        """What `wait` returns, counted as an image."""
        found = wait()
        if self.left:
            self.add(*found)
        return found

    def add(self, label: UInt8, confidence: Float32) -> None:
        """Count an image; the third one warns."""
        self.left -= 1
        self._seen |= set(np.unique(label[label != IGNORE]).tolist())
        self._least = min(self._least, float(confidence.min()))
        if self.left == 0 and (signs := self._signs()):
            _LOG.warning(
                "%s: in the first 3 images %s: are mean, std, output and the order of its classes right?",
                self._mapping.source,
                " and ".join(signs),
            )

    def _signs(self) -> list[str]:
        names, known = self._mapping.classes.classes, set(self._mapping.targets.values())
        never = [names[i] for i in sorted(known - self._seen)]
        is_one = len(self._seen) == 1 < len(known)
        signs = [f"all pixels are {names[next(iter(self._seen))]}"] if is_one else []
        if self._least > _CERTAIN:
            signs.append("each pixel is as good as certain")
        if not signs and 2 * len(never) >= len(known):
            signs.append(f"{len(never)} of {len(known)} classes never occur (first {never[0]})")
        return signs


class ScoresTeacher(Teacher):
    """Probabilities from files; scales and mirroring do not concern them."""

    kind, precision = "scores", "fp32"

    def __init__(self, mapping: ClassMap) -> None:
        self.mappings, self.classes = (mapping,), mapping.classes
        source = self._source = mapping.source
        channels = max(mapping.targets) + 1 if source.table.classes is not None else mapping.classes.classes
        self._channels = source.names or channels

    def predict(self, name: str, image: UInt8) -> Float32:
        """Probabilities of our classes."""
        return self.mappings[0].apply(read_scores(self._source, name, self._channels, image))

    def check(self, names: Sequence[str]) -> None:
        """InputError: an image has no scores."""
        check_files(self._source, names)


class Ensemble(Teacher):
    """The mean of several teachers' probabilities."""

    kind = "ensemble"

    def __init__(self, members: Sequence[Teacher]) -> None:
        self._members, self.classes = members, members[0].classes
        self.mappings = tuple(mapping for member in members for mapping in member.mappings)
        self.precision = "+".join(dict.fromkeys(member.precision for member in members))

    def predict(self, name: str, image: UInt8) -> Float32:
        """Probabilities of our classes."""
        total = self._members[0].predict(name, image).copy()
        for member in self._members[1:]:
            total += member.predict(name, image)
        return np.asarray(total / np.float32(len(self._members)), np.float32)

    def forced(self, image: UInt8) -> int | None:
        """Side of the smallest tiles of a member."""
        return min((side for m in self._members if (side := m.forced(image))), default=None)

    def check(self, names: Sequence[str]) -> None:
        """InputError: a member cannot label an image."""
        for member in self._members:
            member.check(names)


class AdoptedTeacher(Ensemble):
    """Networks that `autolabel adopt` chose, each with its scales, combined as the file says."""

    kind = "adopted"

    def __init__(self, source: Source, adopted: Adopted, classes: ClassTable, context: JobContext) -> None:
        passes = [Passes(m.scales, m.flip) for m in adopted.members]
        members = zip(source.members, passes, strict=True)
        super().__init__([_open(member, its_passes, classes, context) for member, its_passes in members])
        self._adopted = adopted

    def predict(self, name: str, image: UInt8) -> Float32:
        """Probabilities of our classes."""
        return combine(self._adopted, [member.predict(name, image) for member in self._members])


def _facts(mapping: ClassMap) -> dict[str, Any]:
    source, ours = mapping.source, mapping.classes.classes
    names, files = source.names, source.sha256s
    return {
        "teacher": f"{source.family}:{source.path.name}",
        "sha256": source.digest,
        "files": files if source.family != "scores" else len(files),
        "classes": {names[i] if names else str(i): ours[target] for i, target in sorted(mapping.targets.items())},
        "never": list(mapping.never),
    }


def open_teacher(teacher: Sequence[str], passes: Passes, classes: ClassTable, context: JobContext) -> Teacher:
    """Load a teacher for this rank's device.

    Args:
        teacher: what people write (`sources`).
        passes: scales and mirroring; an adopted teacher's file says its own.
        classes: that labels get. A checkpoint alone labels with its own; without names it takes these.
        context: device, threads, precision.

    Raises:
        HmsaError: files, classes or scales that do not fit, each in one line.
    """
    sources = parse(teacher)
    alone = only_checkpoint(teacher)
    if alone is not None:
        predictor = load_predictor(alone, context)
        opened: Teacher = NetworkTeacher(predictor, passes, classes_of(predictor, classes, str(alone)))
    else:
        members = [_open(source, passes, classes, context) for source in sources]
        opened = members[0] if len(members) == 1 else Ensemble(members)
    opened.sources = sources
    return opened


def classes_of(predictor: Predictor, classes: ClassTable, where: str) -> ClassTable:
    """Classes of the checkpoint; one without class names (imported weights) takes the index's if the count fits."""
    stored = ClassTable.of_meta(predictor.meta) or classes
    if stored.num_classes != predictor.num_classes:
        raise ConfigError(
            f"{where}: {predictor.num_classes} classes, but the index has {stored.num_classes} ({stored.name})",
            hint="give the index of the data set that the checkpoint was trained for",
        )
    return stored


def _open(source: Source, passes: Passes, classes: ClassTable, context: JobContext) -> Teacher:
    _ = source.files  # whether they are there, before anything is read from them
    mapping = class_map(source, classes)
    if source.adopted is not None:
        return AdoptedTeacher(source, source.adopted, classes, context)
    # Pictures of a `scores:` folder name its classes, or number them.
    if source.is_unnamed and context.ranks.is_main and not (source.family == "scores" and picture_names(source)):
        _LOG.warning(
            "%s: nothing names its classes: taken for %s, ... in this order; if they are others, say so in %s, or let "
            "`autolabel adopt` find them by labels",
            source,
            ", ".join(classes.classes[:3]),
            source.table_path,
        )
    if source.family == "scores":
        return ScoresTeacher(mapping)
    return NetworkTeacher(open_network(source, context, is_single=passes.scales == (1.0,)), passes, mapping)


def open_network(source: Source, context: JobContext, *, is_single: bool) -> Engine:
    """Load the network of a checkpoint, an ONNX file or a folder of transformers.

    Args:
        source: where it comes from.
        context: device, threads, precision.
        is_single: whether scale 1 alone is requested, all that an ONNX file of one input size can do.
    """
    if source.family == "checkpoint":
        return load_predictor(source.path, context)
    prepare_process(context.runtime.thread_count)
    if source.family == "hf":
        return HuggingFaceNetwork(source, context.ranks.device, context.runtime.precision)
    return OnnxNetwork(source, context.runtime.thread_count, is_single=is_single)
