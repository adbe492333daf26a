"""YAML files about teachers: `Table`, next to the files of one network, and `Adopted`, which `autolabel adopt` writes.

An adopted teacher is several networks, how each takes its images, and how they are combined:

    classes: [road, building, ...]         # ours, in the order of trainIds
    class_table: {...}                     # optional: their colours, groups and ids in files
    members:
      - teacher: onnx:net.onnx             # relative to this file
        classes: {0: road, 2: building}    # its channel (or name) -> ours; further keys as of `Table`
        scales: [1.5]
        flip: true
        weight: 2.0
        temperature: 1.3
    stacking: {weights: [[...], ...], bias: [...]}   # optional: a row a member, a column a class
    images: [...]                          # optional: SHA-256 of the labelled images by which this was chosen
    unconfirmed: [onnx:net.onnx]           # networks whose classes labels alone name; the file cannot be used with it

Without `stacking` the members' probabilities are averaged by `weight`. With it the logit of a class is the weighted sum
of the members' log-probabilities of that class, plus a bias (log-linear pooling: Genest and Zidek 1986); -1000 stands
for a class that no member knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, Strict, model_validator

from hmsa_core.config import LARGEST_SCALE, Positive, PositiveInt, Section
from hmsa_core.io.errors import ConfigError
from hmsa_core.taxonomy import ClassTable, plain

T = TypeVar("T", bound=Section)
Triple = Annotated[tuple[float, float, float], Strict(False)]
Numbers = Annotated[tuple[float, ...], Strict(False)]


class Table(Section):
    """`teacher.yaml`: what a teacher's files do not say themselves."""

    names: Annotated[tuple[str, ...], Strict(False)] | None = Field(None, description="of its classes, in order")
    classes: dict[int | str, int | str | None] | None = Field(
        None, description="its class (name or number) -> ours; classes that are left out, or null, are ignored"
    )
    mean: Triple | None = Field(None, description="of RGB values in [0, 1]")
    std: Triple | None = Field(None, description="of RGB values in [0, 1]")
    order: Literal["rgb", "bgr"] = Field("rgb", description="of the channels that a network takes")
    size: Annotated[tuple[PositiveInt, PositiveInt], Strict(False)] | None = Field(
        None, description="pixels, height x width that images are brought to; null = their own"
    )
    multiple: PositiveInt = Field(1, description="pixels; sides of images are rounded to it")
    output: Literal["logits", "probabilities"] | None = Field(
        None, description="of a network; null = what the file's metadata says, else asked or logits"
    )
    scores: str | None = Field(None, description="of an ONNX file with several outputs, the one that holds the scores")
    provider: str = Field("CPUExecutionProvider", description="of onnxruntime")


class Member(Table):
    """One network of an adopted teacher: its spec, its table, and how it is run."""

    teacher: str = Field(description="checkpoint folder, onnx:FILE, hf:FOLDER or scores:FOLDER; relative to the file")
    scales: Annotated[tuple[Annotated[float, Field(gt=0.0, le=LARGEST_SCALE)], ...], Strict(False)] = Field(
        (1.0,), min_length=1, description="any scales; their logits are averaged"
    )
    flip: bool = Field(False, description="average with the mirror image")
    weight: Positive = Field(1.0, description="of its probabilities in the mean")
    temperature: Positive = Field(1.0, description="its logits are divided by it")

    def table(self) -> Table:
        """What `teacher.yaml` next to the files would say."""
        return Table(**{name: getattr(self, name) for name in Table.model_fields})


class Stacking(Section):
    """Log-linear combination by class."""

    weights: Annotated[tuple[Numbers, ...], Strict(False)]  # members x classes
    bias: Numbers  # classes


class Adopted(Section):
    """The whole file."""

    classes: Annotated[tuple[str, ...], Strict(False)] = Field(min_length=2)
    members: Annotated[tuple[Member, ...], Strict(False)] = Field(min_length=1)
    class_table: dict[str, Any] | None = None  # JSON of a ClassTable
    stacking: Stacking | None = None
    images: Annotated[tuple[str, ...], Strict(False)] = Field(
        (), description="SHA-256 of the labelled images by which all of this was chosen"
    )
    unconfirmed: Annotated[tuple[str, ...], Strict(False)] = Field(
        (), description="networks whose classes labels alone name; whoever has looked at them deletes the line"
    )

    @property
    def table(self) -> ClassTable:
        """Our classes."""
        return plain(self.classes) if self.class_table is None else ClassTable.from_json(self.class_table)

    @model_validator(mode="after")
    def _fits(self) -> Adopted:
        try:
            table = self.table
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"class_table: is none ({error})") from error
        if table.classes != self.classes:
            raise ValueError("class_table: has other names than `classes`")
        if self.stacking is not None:
            count, rows = len(self.classes), (*self.stacking.weights, self.stacking.bias)
            if len(rows) != len(self.members) + 1 or any(len(row) != count for row in rows):
                raise ValueError(f"stacking: expected {len(self.members)} rows of {count} weights, and {count} biases")
        return self


def read_yaml(path: Path, kind: type[T]) -> T:
    """Read such a file. ConfigError: it is missing, no YAML, or holds a mistake."""
    try:
        return kind.checked(yaml.safe_load(path.read_text("utf-8")) or {}, path)
    except OSError as error:
        hint = f"`autolabel adopt ... --out {path}` writes such a file" if kind is Adopted else ""
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", hint=hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML ({error})") from error


def relative_to(folder: Path, spec: str) -> str:
    """A member's spec with its path taken relative to a folder."""
    family, colon, rest = spec.partition(":")
    return f"{family}:{folder / rest}" if colon and "/" not in family else str(folder / spec)
