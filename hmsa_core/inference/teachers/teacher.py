"""`Teacher`: probabilities of our classes for an image, whoever gives them; opened from what people write.

Multi-scale and mirroring are applied here to every network that takes images of any size; finished scores are what
they are. An ensemble is the mean of its members' probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import InferConfig
from hmsa_core.inference.predictor import Engine, Predictor, Tiler, load_predictor
from hmsa_core.inference.teachers.classes import ClassMap, class_map
from hmsa_core.inference.teachers.hugging_face import HuggingFaceNetwork
from hmsa_core.inference.teachers.network import Network
from hmsa_core.inference.teachers.onnx_file import OnnxNetwork
from hmsa_core.inference.teachers.scores import ScoreFiles
from hmsa_core.inference.teachers.sources import Source, only_checkpoint, parse
from hmsa_core.io.errors import ConfigError
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.taxonomy import ClassTable

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]


class Teacher(ABC):
    """What labels images.

    Attributes:
        classes: of the labels.
        kind: of a checkpoint its fusion; else the family, or "ensemble".
        precision: that it computes in.
        sources: what it was opened from.
    """

    classes: ClassTable
    kind: str
    precision: str
    sources: tuple[Source, ...]

    @abstractmethod
    def predict(self, name: str, image: UInt8) -> Float32:
        """Probabilities of our classes, C x H x W float32; what is ignored is in none of them.

        Args:
            name: of the image in the store.
            image: uint8 HxWx3 RGB.
        """

    def label(self, name: str, image: UInt8) -> tuple[UInt8, Float32]:
        """Most probable class, uint8 HxW (the lower one wins a tie), and its probability, float32 HxW."""
        found = self.predict(name, image)
        return found.argmax(0).astype(np.uint8), np.minimum(found.max(0), 1)

    def begin(self, name: str, image: UInt8) -> Callable[[], tuple[UInt8, Float32]]:
        """Begin `label`; the function that is returned waits for a GPU, so that the next image can begin before."""
        found = self.label(name, image)
        return lambda: found

    def forced(self, _image: UInt8) -> int | None:
        """Side of the tiles that lack of memory forced on images of this size; None where it did not."""
        return None

    def check(self, names: Sequence[str]) -> None:  # noqa: B027  # most can label any image
        """Before the first image is labelled: InputError where an image cannot be."""

    def facts(self) -> list[dict[str, Any]]:
        """What the lineage of labels holds of teachers of other tools: files' digests and the class map."""
        return []


class NetworkTeacher(Teacher):
    """A network at several scales: a checkpoint of this package, or a network of another tool."""

    def __init__(self, engine: Engine, mapping: ClassMap, config: InferConfig) -> None:
        self._mapping, self._scales, self._flip = mapping, config.scales, config.flip
        self.classes, self.precision = mapping.classes, engine.precision
        self.kind = mapping.source.family if isinstance(engine, Network) else engine.kind
        # A tile that is brought to the network's own size would show it another scale than the whole image does.
        resizes = isinstance(engine, HuggingFaceNetwork) or (isinstance(engine, Network) and engine.size is not None)
        self._tiler = Tiler(engine, whole_pixels=1 << 62) if resizes else Tiler(engine)

    def predict(self, _name: str, image: UInt8) -> Float32:
        """Probabilities of our classes."""
        return self._mapping.apply(self._tiler.probabilities(image, self._scales, self._flip))

    def forced(self, image: UInt8) -> int | None:
        """Side of the tiles."""
        return self._tiler.forced(image)

    def facts(self) -> list[dict[str, Any]]:
        """Files and classes."""
        return [_facts(self._mapping)]


class CheckpointTeacher(Teacher):
    """One of our checkpoints alone: labels are decided a few rows at a time, probabilities never exist as a whole."""

    def __init__(self, predictor: Predictor, classes: ClassTable, config: InferConfig) -> None:
        self._tiler, self._config = Tiler(predictor), config
        self.classes, self.kind, self.precision = classes, predictor.kind, predictor.precision

    def predict(self, _name: str, image: UInt8) -> Float32:
        """Probabilities of its classes."""
        return self._tiler.probabilities(image, self._config.scales, self._config.flip)

    def label(self, _name: str, image: UInt8) -> tuple[UInt8, Float32]:
        """Class and probability."""
        return self._tiler.label(image, self._config.scales, self._config.flip)

    def begin(self, _name: str, image: UInt8) -> Callable[[], tuple[UInt8, Float32]]:
        """Begin `label`."""
        return self._tiler.begin(image, self._config.scales, self._config.flip)

    def forced(self, image: UInt8) -> int | None:
        """Side of the tiles."""
        return self._tiler.forced(image)


class ScoresTeacher(Teacher):
    """Probabilities from files; scales and mirroring do not concern them."""

    def __init__(self, mapping: ClassMap) -> None:
        self._mapping, self.classes = mapping, mapping.classes
        self.kind, self.precision = "scores", "fp32"
        self._files = ScoreFiles(mapping.source, mapping.source.names or mapping.classes.classes)

    def predict(self, name: str, image: UInt8) -> Float32:
        """Probabilities of our classes."""
        return self._mapping.apply(self._files.read(name, (image.shape[0], image.shape[1])))

    def check(self, names: Sequence[str]) -> None:
        """InputError: an image has no scores."""
        self._files.check(list(names))

    def facts(self) -> list[dict[str, Any]]:
        """Folder and classes."""
        return [_facts(self._mapping)]


class Ensemble(Teacher):
    """The mean of several teachers' probabilities."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        self._members = members
        self.classes, self.kind = members[0].classes, "ensemble"
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

    def facts(self) -> list[dict[str, Any]]:
        """Those of all members."""
        return [row for member in self._members for row in member.facts()]


def _facts(mapping: ClassMap) -> dict[str, Any]:
    source, ours = mapping.source, mapping.classes.classes
    files = source.sha256s
    return {
        "teacher": f"{source.family}:{source.path.name}",
        "sha256": source.digest,
        "files": files if source.family != "scores" else len(files),
        "classes": {_name(source, channel): ours[target] for channel, target in sorted(mapping.targets.items())},
        "never": list(mapping.never),
    }


def _name(source: Source, channel: int) -> str:
    return source.names[channel] if source.names else str(channel)


def open_teacher(teacher: Sequence[str], config: InferConfig, classes: ClassTable, context: JobContext) -> Teacher:
    """Load a teacher for this rank's device.

    Args:
        teacher: what people write (`sources`).
        config: scales and flip.
        classes: that labels get. A checkpoint alone labels with its own; without names it takes these.
        context: device, threads, precision.

    Raises:
        HmsaError: files, classes or scales that do not fit, each in one line.
    """
    sources = parse(teacher)
    alone = only_checkpoint(teacher)
    if alone is not None:
        predictor = load_predictor(alone, context)
        opened: Teacher = CheckpointTeacher(predictor, classes_of(predictor, classes, str(alone)), config)
    else:
        members = [_open(source, config, classes, context) for source in sources]
        opened = members[0] if len(members) == 1 else Ensemble(members)
    opened.sources = sources
    return opened


def classes_of(predictor: Predictor, classes: ClassTable, where: str) -> ClassTable:
    """Classes of the checkpoint; one without class names (imported weights) takes the index's if the count fits."""
    table = predictor.meta.get("class_table")
    own = ClassTable.from_json(table) if table else classes
    if own.num_classes != predictor.num_classes:
        raise ConfigError(
            f"{where}: {predictor.num_classes} classes, but the index has {own.num_classes} ({own.name})",
            hint="give the index of the data set that the checkpoint was trained for",
        )
    return own


def _open(source: Source, config: InferConfig, classes: ClassTable, context: JobContext) -> Teacher:
    _ = source.files  # whether they are there, before anything is read from them
    mapping = class_map(source, classes)
    if source.family == "scores":
        return ScoresTeacher(mapping)
    return NetworkTeacher(_engine(source, config, context), mapping, config)


def _engine(source: Source, config: InferConfig, context: JobContext) -> Engine:
    if source.family == "checkpoint":
        return load_predictor(source.path, context)
    if source.family == "hf":
        return HuggingFaceNetwork(source, context.device, context.runtime.precision)
    return OnnxNetwork(source, context.runtime.thread_count, is_single=tuple(config.scales) == (1.0,))
