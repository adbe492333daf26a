"""A teacher as people write it, the files behind it and their digests, what it learned from. No torch here.

    FOLDER         one of our checkpoints
    onnx:FILE      a network that onnxruntime runs
    hf:FOLDER      a folder of transformers with a network for semantic segmentation
    FILE.yaml      networks and their use as `autolabel adopt` chose them (`teachers.adopted`)
    scores:FOLDER  probabilities of each image, made elsewhere (`teachers.scores`)

Several of them are an ensemble. What the files do not say, a table (`Table`) does: `FILE.teacher.yaml` or
`FOLDER/teacher.yaml` next to them, or another file, `onnx:FILE?map=TABLE`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from hmsa_core.config import Passes
from hmsa_core.data.walk import walk
from hmsa_core.inference.teachers.teacher_files import Adopted, Table, read_yaml, relative_to
from hmsa_core.io.atomic import digest, read_json, sha256_file
from hmsa_core.io.errors import CheckpointError, ConfigError, InputError, did_you_mean, needs_extra
from hmsa_core.io.remote import local_folder
from hmsa_core.lineage import Lineage, lineage_of_checkpoint
from hmsa_core.models.checkpoint import read_meta
from hmsa_core.taxonomy import ClassTable

FAMILIES = ("onnx", "hf", "scores")
_MAP = "?map="
SCORE_SUFFIXES = (".npz", ".npy", ".png")
_METHOD = 1  # raised when teachers of other tools are run in another way: labels are then not mixed
_STACKED = 2  # the same of members that are stacked


@dataclass(frozen=True)
class Source:
    """One teacher: its family, its path, and the table that is not next to it."""

    family: str  # checkpoint | onnx | hf | scores | adopted
    path: Path
    map: Path | None = None
    given: Table | None = None  # the table itself, in place of a file

    def __str__(self) -> str:
        return str(self.path) if self.family in ("checkpoint", "adopted") else f"{self.family}:{self.path}"

    @property
    def text(self) -> str:
        """What `parse` reads as this teacher."""
        return str(self) if self.map is None else f"{self}{_MAP}{self.map}"

    @property
    def table_path(self) -> Path:
        """Where the table lies, there or not."""
        if self.map or self.path.is_dir():
            return self.map or self.path / "teacher.yaml"
        # Of a link: next to it, else next to the file that it leads to.
        here, behind = (one.with_name(f"{one.name}.teacher.yaml") for one in (self.path, self.path.resolve()))
        return behind if behind.is_file() and not here.is_file() else here

    @cached_property
    def table(self) -> Table:
        """The table next to the files; the defaults where there is none. ConfigError: a mistake in it."""
        if self.given is not None:
            return self.given
        path = self.table_path
        if self.family == "adopted":
            return Table()
        if not path.is_file():
            if self.map:
                raise ConfigError(f"{path}: no such file, but it shall be the class table of {self}")
            return Table()
        return read_yaml(path, Table)

    @cached_property
    def adopted(self) -> Adopted | None:
        """What `autolabel adopt` chose, where this is its file. ConfigError: a mistake in it."""
        if self.family != "adopted":
            return None
        found = read_yaml(self.path, Adopted)
        if found.unconfirmed:
            raise ConfigError(
                f"{self.path}: labels alone say what the classes of {found.unconfirmed[0]} are",
                hint="compare `classes` there with the network's documentation, then delete the line `unconfirmed`",
            )
        return found

    @cached_property
    def members(self) -> tuple[Source, ...]:
        """The networks of an adopted teacher, their paths taken relative to its file; this one alone for others."""
        if self.adopted is None:
            return (self,)
        return tuple(
            replace(_one(relative_to(self.path.parent, member.teacher)), given=member.table())
            for member in self.adopted.members
        )

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that decide what it computes. InputError: they are not there, or of a form that is refused."""
        if self.adopted is not None:
            missing = next((member for member in self.members if not member.path.exists()), None)
            if missing is not None:
                hint = f"paths in {self.path} start from its folder: move networks and file together"
                raise InputError(f"{missing}: is not there", hint=hint)
            return (self.path, *(file for member in self.members for file in member.files))
        return _FILES[self.family](self.path)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of its classes in the order of its channels; empty where nothing tells them."""
        if self.adopted is not None:
            return self.adopted.classes
        return self.table.names or _NAMES[self.family](self.path)

    @property
    def is_unnamed(self) -> bool:
        """Whether nothing tells its classes: neither names nor a table."""
        return not self.names and self.table.classes is None

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides what it computes; of a checkpoint, that of its weights."""
        if self.adopted is not None:
            content = self.adopted.model_dump(mode="json", exclude={"members": {"__all__": {"teacher"}}})
            del content["class_table"], content["images"], content["unconfirmed"]  # they decide no label
            method = _METHOD if self.adopted.stacking is None else _STACKED
            return digest({"method": method, "adopted": content, "members": [m.digest for m in self.members]})
        if self.family == "checkpoint":
            weights = str(read_meta(self.path)["weights_sha256"])
            return weights if self.table == Table() else digest({"weights": weights, "table": self._table_json()})
        return digest({"method": _METHOD, "family": self.family, "files": self.sha256s, "table": self._table_json()})

    @cached_property
    def sha256s(self) -> dict[str, str]:
        """SHA-256 of each file, by its path in the teacher's folder; the name of a single file does not matter."""
        return {_place(file, self.path): sha256_file(file) for file in self.files}

    def _table_json(self) -> dict[str, Any]:
        return self.table.model_dump(mode="json", exclude=set() if self.table.scores else {"scores"})


Spec = str | Path | Source | Sequence[str | Path | Source]


def parse(teacher: Spec) -> tuple[Source, ...]:
    """Read what people write. ConfigError: an unknown family, or nothing. Whether files are there is not looked at."""
    given = [teacher] if isinstance(teacher, str | Path | Source) else list(teacher)
    if not given:
        raise ConfigError("no teacher is given", hint="a checkpoint folder, onnx:FILE, hf:FOLDER or scores:FOLDER")
    return tuple(one if isinstance(one, Source) else _one(str(one)) for one in given)


def _one(text: str) -> Source:
    text, _, table = text.partition(_MAP)
    table_path = Path(table) if table else None
    family, colon, rest = text.partition(":")
    if colon and family in FAMILIES and rest:
        return Source(family, Path(rest), table_path)
    path = local_folder(text)
    if path.suffix in (".yaml", ".yml"):
        return Source("adopted", path)
    if path.suffix in (".pth", ".pt", ".ckpt") and path.is_file():
        raise ConfigError(
            f"teacher {text}: is a file of torch, not a checkpoint folder",
            hint="`autolabel import-checkpoint` converts released ones; others: export to ONNX, and write onnx:FILE",
        )
    if colon and not path.exists() and "/" not in family:
        known = f"known: {', '.join(FAMILIES)}, or the path of a checkpoint folder"
        raise ConfigError(
            f"teacher {text}: unknown kind {family!r}", hint=did_you_mean(family, FAMILIES, known, cutoff=0.6)
        )
    if path.suffix == ".onnx" and path.is_file():
        raise ConfigError(f"teacher {text}: is an ONNX file, not a checkpoint folder", hint=f"write onnx:{text}")
    if (path / "config.json").is_file() and not (path / "model.json").is_file():
        raise ConfigError(
            f"teacher {text}: is a folder of transformers, not a checkpoint folder of autolabel",
            hint=f"write hf:{text}",
        )
    return Source("checkpoint", path.parent if path.is_file() else path, table_path)


def resolved(teacher: Spec, resolve: Callable[[Path], Path]) -> tuple[str, ...]:
    """The same teacher with its paths made absolute by `resolve`."""
    return tuple(Source(one.family, resolve(one.path), one.map and resolve(one.map)).text for one in parse(teacher))


def digest_of(teacher: Spec) -> str:
    """Digest of a teacher: what keys of finished work and the lineage of labels hold."""
    sources = parse(teacher)
    if len(sources) == 1:
        return sources[0].digest
    # The weights of a checkpoint do not tell how its scales are fused.
    kinds = [read_meta(one.path)["kind"] if one.family == "checkpoint" else "" for one in sources]
    return digest({"mean_of": [[one.digest, kind] for one, kind in zip(sources, kinds, strict=True)]})


def uses_passes(teacher: Spec) -> bool:
    """Whether scales and flip are given to a teacher: an adopted one's file says its own, stored scores have none."""
    return any(one.family not in ("adopted", "scores") for one in parse(teacher))


def made_by(teacher: Spec, passes: Passes) -> dict[str, Any]:
    """Teacher, scales and flip, as keys of finished work and the lineage of labels hold them.

    Scales and flip are None where `passes` is not used.
    """
    is_used = uses_passes(teacher)
    used = {"scales": sorted(passes.scales), "flip": passes.flip} if is_used else {"scales": None, "flip": None}
    return {"teacher": digest_of(teacher), **used}


def only_checkpoint(teacher: Spec) -> Path | None:
    """The folder of a teacher that is a single checkpoint of this project; None for an ensemble or another family."""
    sources = parse(teacher)
    one = sources[0]
    return one.path if len(sources) == 1 and one.family == "checkpoint" and one.table.classes is None else None


def lineage_of(teacher: Spec) -> Lineage:
    """All images that a teacher is known to have learned from, and in words what is not known.

    Raises:
        IntegrityError: the list of a checkpoint is not the one that belongs to it.
    """
    found = Lineage()
    for source in (member for one in parse(teacher) for member in one.members):
        if source.family == "checkpoint":
            one = lineage_of_checkpoint(source.path)
        else:
            one = Lineage(unknown=(f"{source.family} {source.digest[:16]}: what it learned from is not listed",))
        found = found.union(one.with_parent(source.digest))
    return found


def chosen_on(teacher: Spec) -> frozenset[str]:
    """SHA-256 of the labelled images by which `autolabel adopt` chose how a teacher's networks are used."""
    return frozenset(image for source in parse(teacher) if source.adopted for image in source.adopted.images)


def _place(file: Path, path: Path) -> str:
    """A file by its path in the teacher's folder; the file itself, whose name does not matter, is ""."""
    folder = path if path.is_dir() else path.parent
    return "" if file == path else file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


# -- files and names of each family ------------------------------------------------------------------


def _checkpoint_files(path: Path) -> tuple[Path, ...]:
    read_meta(path)
    return ()  # model.json holds the digest of the weights


def _onnx_files(path: Path) -> tuple[Path, ...]:
    data = [onnx_home(path).parent / name for name in _external_data(_onnx_model(path))]
    missing = next((file for file in data if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"onnx:{path}: its weights are in {missing}, which is not there", hint="copy both files")
    return (path, *data)


def onnx_home(path: Path) -> Path:
    """The path from which an ONNX file finds the files of its weights: its own, or the one that a link leads to."""
    names = _external_data(_onnx_model(path))
    return path if all((path.parent / name).is_file() for name in names) else path.resolve()


def _external_data(model: Any) -> list[str]:
    """Names of the files that hold tensors: weights, and constants of any node and function."""
    places: list[Any] = [model.graph, *model.functions]
    tensors: list[Any] = []
    for place in places:
        tensors += getattr(place, "initializer", [])
        tensors += [part for one in getattr(place, "sparse_initializer", []) for part in (one.values, one.indices)]
        for value in (value for node in place.node for value in node.attribute):
            places += [value.g, *value.graphs]
            tensors += [value.t, *value.tensors]
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def _onnx_model(path: Path) -> Any:
    """The graph without weights that lie in other files."""
    if not path.is_file():
        raise InputError(f"onnx:{path}: no such file")
    with needs_extra("onnx"):
        import onnx
        from google.protobuf.message import DecodeError
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)  # not by the name's ending
        if not model.graph.node:  # an empty file is a valid message
            raise DecodeError("it holds no graph")
    except DecodeError as error:
        raise CheckpointError(
            f"onnx:{path}: is no ONNX file, or damaged ({error})",
            hint="`autolabel export-model` writes one of a checkpoint; other files are not read as networks",
        ) from error
    return model


def onnx_metadata(path: Path, table: Table) -> dict[str, Any]:
    """`classes`, `mean`, `std` and `output` of an ONNX file's metadata, as far as they are there and not in its table.

    They are JSON. `classes` is a list of names, a table id -> name or name -> id, or plain text.
    """
    found = {row.key: row.value for row in _onnx_model(path).metadata_props}
    values: dict[str, Any] = {}
    if "classes" in found and table.names is None:
        values["classes"] = _in_order(found["classes"], path)
    for key, example in (("mean", "[0.5, 0.5, 0.5]"), ("std", "[0.5, 0.5, 0.5]"), ("output", "logits")):
        if key not in found or getattr(table, key) is not None:
            continue
        try:
            value = json.loads(found[key])
            values[key] = value if key == "output" else [float(number) for number in value]
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"onnx:{path}: its metadata {key!r} is not written as JSON, such as {json.dumps(example)}",
                hint=f"write `{key}: {example}`, with what is right, in {path.name}.teacher.yaml",
            ) from error
    return values


def _in_order(text: str, path: Path) -> list[str]:
    try:
        given = yaml.safe_load(text)  # JSON, and how Python prints it
    except yaml.YAMLError:
        given = None
    if not isinstance(given, list | dict):
        given = [name.strip() for name in text.strip().replace("\n", ",").split(",")]
    if isinstance(given, dict):
        pairs = [(v, k) if isinstance(v, int) else (k, v) for k, v in given.items()]
        rows = {int(number): name for number, name in pairs if str(number).isdecimal()}
        given = [rows.get(i) for i in range(len(pairs))]
    if not isinstance(given, list) or not given or not all(isinstance(name, str) and name for name in given):
        raise CheckpointError(
            f"onnx:{path}: its metadata 'classes' names no class for each number from 0 on",
            hint=f"write the names in their order, `names: [...]`, in {path.name}.teacher.yaml",
        )
    return given


def _hf_files(path: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        raise InputError(f"hf:{path}: no such folder", hint="give a folder with config.json and *.safetensors")
    if not (path / "config.json").is_file():
        raise InputError(f"hf:{path}: no config.json in it", hint="give a folder that save_pretrained wrote")
    if "auto_map" in read_json(path / "config.json"):
        raise CheckpointError(f"hf:{path}: needs program code of its own (auto_map), which is never run")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = [file.name for file in sorted(path.iterdir()) if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        found = f"holds its weights as a pickle ({pickled[0]}), which is refused" if pickled else "holds no weights"
        raise CheckpointError(
            f"hf:{path}: {found}", hint="save it again with model.save_pretrained(FOLDER, safe_serialization=True)"
        )
    if not (path / "preprocessor_config.json").is_file():
        raise InputError(
            f"hf:{path}: no preprocessor_config.json in it: how images are prepared is not known",
            hint="processor.save_pretrained(FOLDER) of the same model writes it",
        )
    index = sorted(path.glob("*.safetensors.index.json"))
    return (path / "config.json", path / "preprocessor_config.json", *index, *weights)


def _hf_names(path: Path) -> tuple[str, ...]:
    if not (path / "config.json").is_file():
        return ()
    rows = read_json(path / "config.json").get("id2label") or {}
    return tuple(str(rows[key]) for key in sorted(rows, key=int))


def _score_files(path: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        raise InputError(f"scores:{path}: no such folder")
    files = tuple(walk(path, SCORE_SUFFIXES).paths())
    if not files:
        raise InputError(f"scores:{path}: no {', '.join(SCORE_SUFFIXES)} file in it")
    return files


def _checkpoint_names(path: Path) -> tuple[str, ...]:
    table = ClassTable.of_meta(read_meta(path))
    return table.classes if table else ()


_FILES: dict[str, Callable[[Path], tuple[Path, ...]]] = {
    "checkpoint": _checkpoint_files,
    "onnx": _onnx_files,
    "hf": _hf_files,
    "scores": _score_files,
}
_NAMES: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "checkpoint": _checkpoint_names,
    "onnx": lambda path: tuple(onnx_metadata(path, Table()).get("classes", ())),
    "hf": _hf_names,
    "scores": lambda _path: (),
}
