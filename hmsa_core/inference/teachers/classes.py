"""A teacher's classes become ours: by a table, else by equal names, else by their order. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmsa_core.inference.teachers.sources import Source, Spec, parse
from hmsa_core.io.errors import ConfigError, did_you_mean
from hmsa_core.models.checkpoint import read_meta
from hmsa_core.taxonomy import IGNORE, ClassTable, plain


@dataclass(frozen=True)
class ClassMap:
    """From a teacher's channels to our classes."""

    source: Source
    classes: ClassTable
    targets: dict[int, int]  # channel -> trainId; channels that are not here count for no class
    channels: int | None  # None = not known before the first image

    @property
    def is_identity(self) -> bool:
        """Whether the teacher's channels are our classes in our order."""
        count = self.classes.num_classes
        return self.channels == count and self.targets == {i: i for i in range(count)}

    @property
    def never(self) -> tuple[str, ...]:
        """Names of our classes that this teacher does not know."""
        known = set(self.targets.values())
        return tuple(name for i, name in enumerate(self.classes.classes) if i not in known)

    def apply(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of our classes, C x H x W, from those of the teacher's, T x H x W: sums of what maps to each.

        Raises:
            ConfigError: the teacher gives another number of classes than is known of it.
        """
        self.check(len(found))
        if self.is_identity:
            return found
        return summed(found, self.targets, self.classes.num_classes)

    def check(self, found: int) -> None:
        """ConfigError: the teacher gives `found` channels, which does not fit the names or the table."""
        if self.channels is not None and found != self.channels:
            known = (
                f"{len(self.source.names)} names" if self.source.names else f"{self.classes.name} has {self.channels}"
            )
            example = f"`classes: {{0: {self.classes.classes[0]}, ...}}`"
            raise ConfigError(
                f"{self.source}: gives {found} classes, but {known}",
                hint=f"map the classes in {self.source.table_path}: {example}; unlisted classes are ignored",
            )
        if max(self.targets) >= found:
            raise ConfigError(
                f"{self.source.table_path}: maps class {max(self.targets)}; the teacher has classes 0 to {found - 1}",
                hint="correct the teacher's class numbers in `classes`: {number: your class}",
            )


def summed(found: NDArray[np.float32], targets: Mapping[int, int], num_classes: int) -> NDArray[np.float32]:
    """Probabilities C x ... of our classes from T x ...: sums of the channels that `targets` maps to each.

    Where one of two channels is ours, as a sigmoid's is, it counts only where it is the likelier one.
    """
    ours = np.zeros((num_classes, *found.shape[1:]), np.float32)
    for channel, target in targets.items():
        ours[target] += found[channel]
    if len(found) == 2 and len(targets) == 1:
        ours[ours < 0.5] = 0
    return ours


def class_map(source: Source, classes: ClassTable) -> ClassMap:
    """How a teacher's classes become ours: by its table, else by equal names, else by their order.

    Raises:
        ConfigError: a name that no class has; numbers that are none; nothing is mapped.
    """
    if source.adopted is not None and source.adopted.classes != classes.classes:
        raise ConfigError(
            f"{source}: was made for other classes ({', '.join(source.adopted.classes[:4])}, ...) than {classes.name}",
            hint="run `autolabel adopt` with these classes",
        )
    names, table = source.names, source.table.classes
    if table is not None:
        targets = _by_table(source, table, classes)
    elif names:
        targets = _by_names(source, classes)
    else:
        return ClassMap(source, classes, {i: i for i in range(classes.num_classes)}, classes.num_classes)
    # A network of one class gives the rest as its second channel.
    return ClassMap(source, classes, targets, max(2, len(names)) if names else None)


def _by_names(source: Source, classes: ClassTable) -> dict[int, int]:
    ours = {name.lower(): i for i, name in enumerate(classes.classes)}
    strangers = [name for name in source.names if name.lower() not in ours]
    if strangers:
        near = did_you_mean(strangers[0], classes.classes, f"the classes are: {', '.join(classes.classes[:8])}, ...")
        raise ConfigError(
            f"{source}: {len(strangers)} of its {len(source.names)} classes are none of {classes.name}, "
            f"the first: {strangers[0]!r} ({near})",
            hint="`autolabel adopt` maps classes of other label sets; or "
            f"write {source.table_path}: `classes: {{{strangers[0]}: OURS, ...}}`; what it leaves out is ignored",
        )
    return {i: ours[name.lower()] for i, name in enumerate(source.names)}


def _by_table(source: Source, table: dict[int | str, int | str | None], classes: ClassTable) -> dict[int, int]:
    targets = {
        channel: _target(source, ours, classes)
        for key, ours in table.items()
        if ours is not None and ours != IGNORE
        for channel in _channels(source, key)
    }
    # Names are checked where they are ignored, too.
    for key in table:
        _channels(source, key)
    if not targets:
        raise ConfigError(f"{source.table_path}: no class is mapped to one of {classes.name}")
    return targets


def _channels(source: Source, key: int | str) -> list[int]:
    names = [name.lower() for name in source.names]
    if isinstance(key, str) and key.lower() in names:
        return [i for i, name in enumerate(names) if name == key.lower()]
    number = key if isinstance(key, int) else int(key) if key.isdecimal() else None
    if number is not None and number >= 0 and (not names or number < max(2, len(names))):
        return [number]
    known = f"it has {len(names)} classes: {', '.join(source.names[:8])}" if names else "it has numbers only"
    raise ConfigError(
        f"{source.table_path}: the teacher has no class {key!r}: {did_you_mean(str(key), source.names, known)}"
    )


def _target(source: Source, ours: int | str, classes: ClassTable) -> int:
    if isinstance(ours, int):
        if not 0 <= ours < classes.num_classes:
            raise ConfigError(f"{source.table_path}: {classes.name} has no class {ours}, only {classes.num_classes}")
        return ours
    names = [name.lower() for name in classes.classes]
    if ours.lower() not in names:
        near = did_you_mean(ours, classes.classes, f"the classes are: {', '.join(classes.classes)}")
        raise ConfigError(f"{source.table_path}: {classes.name} has no class {ours!r}: {near}")
    return names.index(ours.lower())


def named_classes(teacher: Spec) -> ClassTable:
    """The classes that a teacher names itself, where no others are requested.

    Raises:
        ConfigError: it names none, or a table maps them to others that are not given.
    """
    for source in parse(teacher):
        if source.adopted is not None:
            return source.adopted.table
        if source.table.classes is None and len(source.names) > 1:  # a sigmoid's class alone is no table
            meta = read_meta(source.path) if source.family == "checkpoint" else {}
            return ClassTable.of_meta(meta) or plain(source.names)
    raise ConfigError(
        f"{parse(teacher)[0]}: which classes the labels shall have is not known",
        hint="give --classes: a file of class names (docs/own-data.md), or cityscapes, mapillary_v1.2, voc, ...",
    )
