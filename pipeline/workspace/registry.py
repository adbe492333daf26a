"""The model registry: plain files that say which model is the teacher, who promoted it, and why.

models/current.json             {"teacher": "stage:teacher-train" | "models/registry/VERSION"}
models/registry/VERSION/        checkpoint folder (hard links) + record.json
models/registry/history.jsonl   one line a promotion, rollback or repair, oldest first
models/registry/champion.json   {"version": ...}: pinned reference that catches slow losses
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic, records, sealed
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, IntegrityError, one_line
from hmsa_core.io.locks import FileLock
from hmsa_core.io.trees import link_tree, new_tree
from hmsa_core.lineage import lineage_of_checkpoint
from hmsa_core.taxonomy import ClassTable
from pipeline.workspace.table import CURRENT

TEACHER_STAGE = "stage:teacher-train"  # the teacher of a workspace without a promoted model
_HISTORY = ("digest", "lineage", "extra")  # keys of model.json: how the weights were made, not what the model is
_REGISTER = "`autolabel models register DIR` gives a checkpoint folder a version"
_OTHERS = "`autolabel models list` shows the others; `autolabel models promote VERSION` chooses one"


@dataclass(frozen=True)
class Version:
    """One registered model: its name, folder and record."""

    name: str
    path: Path
    record: dict[str, Any]


class Registry:
    """Registered models of one workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "models" / "registry"
        self.current_file = root / CURRENT
        self._pin = self.folder / "champion.json"

    def current(self) -> str:
        """Name of the teacher: "stage:NAME" or a path relative to the workspace."""
        if not self.current_file.exists():
            hint = 'write {"teacher": "stage:teacher-train"} into it, or run `autolabel init`'
            raise ConfigError(f"{self.current_file}: missing", hint=hint)
        hint = "`autolabel models rollback` returns to the last teacher that is undamaged"
        try:
            teacher = atomic.read_json(self.current_file).get("teacher")
        except IntegrityError as error:
            raise IntegrityError(error.message, hint=hint) from error
        if not isinstance(teacher, str) or not teacher:
            raise ConfigError(f'{self.current_file}: expected {{"teacher": "stage:teacher-train"}}', hint=hint)
        return teacher

    def teacher(self) -> Path:
        """Checkpoint folder of the teacher.

        Raises:
            ConfigError: current.json names no registered model, or the checkpoint is missing.
        """
        current = self.current()
        folder = (self.root / ("models/teacher" if current == TEACHER_STAGE else current)).resolve()
        if current != TEACHER_STAGE and folder.parent != self.folder.resolve():
            raise ConfigError(
                f'models/current.json: teacher is {current!r}; expected "{TEACHER_STAGE}" or "models/registry/VERSION"',
                hint="`autolabel models list` shows the versions; `autolabel models rollback` takes the previous one",
            )
        if not (folder / "model.json").is_file():
            raise ConfigError(
                f"{folder}: no checkpoint there (models/current.json names {current!r} as the teacher)",
                hint="run `dvc repro teacher-train`, or `autolabel models rollback`",
            )
        return folder

    def versions(self) -> list[Version]:
        """All registered models whose record can be read, oldest first; `read` also reports the others."""
        return self.read()[0]

    def read(self) -> tuple[list[Version], dict[str, str]]:
        """The registered models, oldest first, and {name: fault} of those whose record cannot be read."""
        found, torn = [], {}
        for path in sorted(self.folder.glob("v*/record.json")):
            try:
                found.append(Version(path.parent.name, path.parent, read_record(path)))
            except HmsaError as error:
                torn[path.parent.name] = error.message
        return sorted(found, key=lambda v: int(v.record["number"])), torn

    def get(self, name: str) -> Version:
        """One version by name or by a unique beginning of it."""
        versions, torn = self.read()
        hits = [v for v in versions if v.name == name] or [v for v in versions if v.name.startswith(name)]
        for other, wrong in torn.items():
            if other.startswith(name) and not any(v.name == name for v in hits):
                raise IntegrityError(wrong, hint=f"`autolabel models register {self.folder / other}` writes it anew")
        if len(hits) != 1:
            known = ", ".join(v.name for v in versions) or "none"
            wrong = f"expected one version named {name!r} in {self.folder}, found {len(hits)}"
            raise InputError(f"{wrong} (registered: {known})", hint=_REGISTER)
        return hits[0]

    def history(self) -> list[dict[str, Any]]:
        """Promotions and rollbacks, oldest first."""
        return records.read(self.folder / "history.jsonl", "a switch of the teacher", ("action", "from", "to"))

    def register(
        self, checkpoint: Path, *, metrics: dict[str, Any] | None = None, verdict: dict[str, Any] | None = None
    ) -> Version:
        """Register a checkpoint folder and return its version.

        The same weights with the same description get their existing version, repaired if it was damaged. Where
        `checkpoint` is the folder of a version, a lost record is written again.
        """
        if not (checkpoint / "model.json").is_file():
            hint = "give a folder such as models/student"
            raise InputError(f"{checkpoint}: no checkpoint (model.json is missing)", hint=hint)
        if wrong := damage(checkpoint):
            raise IntegrityError(wrong)
        meta = atomic.read_json(checkpoint / "model.json")
        weights = str(meta["weights_sha256"])
        versions, torn = self.read()
        folder = checkpoint.resolve()
        is_version = folder.parent == self.folder.resolve() and folder.name.startswith("v")
        for version in versions:
            is_same = version.record.get("weights_sha256") == weights and describes(version.path, checkpoint)
            if version.name == folder.name if is_version else is_same:
                if damage(version.path):
                    _put(checkpoint, version.path, version.record)
                return version
        numbers = [int(v.record["number"]) for v in versions] + [_number_of(name) for name in torn]
        number = _number_of(folder.name) if is_version else 1 + max(numbers, default=0)
        path = folder if is_version else self.folder / f"v{number:04d}-{weights[:8]}"
        atomic.sweep_temps(self.folder)
        record = {
            "number": number,
            "role": "student" if is_version else folder.name,
            "weights_sha256": weights,
            "metrics": metrics or {},
            "verdict": verdict,
            "parents": meta.get("lineage", {}).get("parents", []) if isinstance(meta.get("lineage"), dict) else [],
            "incumbent": self.current(),
        }
        if is_version:
            atomic.write_json(path / "record.json", record)
        else:
            _put(checkpoint, path, record)
        return Version(path.name, path, record)

    def promote(self, version: Version, *, by: str = "", reason: str = "") -> None:
        """Make a version the teacher: pin it if nothing is pinned, append to the history, write `current.json` last.

        Raises:
            IntegrityError: files of the version are damaged.
        """
        _check_whole(version)
        with self._lock():
            now = self.current()
            if not self._pin.exists():  # first, so that no teacher is without a reference
                self._set_pin(version.name)
            self._switch("promote", f"models/registry/{version.name}", by, reason, now=now)

    def rollback(self, *, by: str = "", reason: str = "") -> str:
        """Make the previous teacher the teacher again; return its name.

        Where current.json, or the model that it names, is damaged or missing, the last undamaged teacher is taken.

        Raises:
            InputError: there is no previous teacher, or it is damaged.
        """
        with self._lock():
            try:
                now = self.current()
                broken = not self._is_whole(now)
            except HmsaError:  # current.json is missing or damaged: take the last undamaged teacher
                now, broken = "", True
            if broken:
                pinned, before = None, self._last_that_is_whole(now)
            else:
                pinned, before = self._pinned(), self._before(now)  # errors come before any change
                if not self._is_whole(before):
                    wrong = version_damage(self.root / before) or f"{before} is no registered model"
                    raise InputError(f"cannot roll back: {wrong}", hint=_OTHERS)
            # A rollback bars the model from later promotions by the gate; a repair does not.
            self._switch("repair" if broken else "rollback", before, by, reason, now=now)
            # Later candidates are compared with the model that teaches again, not with the withdrawn one.
            if pinned == Path(now).name and before == TEACHER_STAGE:
                self._pin.unlink()  # the next promotion pins its version
            elif pinned == Path(now).name:
                self._set_pin(Path(before).name)
            return before

    def _before(self, now: str) -> str:
        """The teacher before the present one; a second rollback goes one teacher further back, never forward again."""
        teachers: list[str] = []
        for line in self._switches(now):
            old, new = str(line["from"]), str(line["to"])
            if line["action"] == "repair":  # the model that the repair replaced is damaged or gone
                teachers = _up_to(teachers, new) or [new]
            elif line["action"] == "rollback" and teachers[-2:] == [new, old]:
                teachers.pop()
            else:
                teachers = [*(_up_to(teachers, old) or [old]), new]
        teachers = _up_to(teachers, now)
        if len(teachers) < 2:
            raise InputError(f"nothing to roll back to: {now} is the first teacher of this workspace", hint=_OTHERS)
        return teachers[-2]

    def _switches(self, now: str) -> list[dict[str, Any]]:
        """Lines of the history, without those whose writer was killed before it wrote current.json."""
        lines = self.history()
        then = [*(str(line["from"]) for line in lines[1:]), now]
        return [line for line, after in zip(lines, then, strict=False) if not line["from"] == after != line["to"]]

    def _is_whole(self, teacher: str) -> bool:
        """Whether current.json may name this teacher: an undamaged version, or teacher-train (even untrained)."""
        folder = (self.root / teacher).resolve()
        return teacher == TEACHER_STAGE or (folder.parent == self.folder.resolve() and not version_damage(folder))

    def _last_that_is_whole(self, gone: str) -> str:
        """The last undamaged teacher of the history that is not withdrawn; without one, the model of teacher-train."""
        teachers = (str(line["to"]) for line in reversed(self.history()))
        may = (t for t in teachers if t != gone and not self.withdrawn(Path(t).name) and self._is_whole(t))
        return next(may, TEACHER_STAGE)

    def withdrawn(self, name: str) -> dict[str, Any] | None:
        """The rollback that ended a version's time as teacher; None without one, or after a later promotion.

        A rollback by a person applies to every version with the same weights.
        """
        try:
            now = self.current()
        except HmsaError:  # current.json is missing or damaged: every line of the history counts
            now = ""
        weights = weights_by_name(self.folder / name)
        same = {p.name for p in self.folder.glob("v*") if weights and weights_by_name(p) == weights} | {name}
        for line in reversed(self._switches(now)):
            if Path(str(line["to"])).name in same:
                return None
            if Path(str(line["from"])).name in same and line["action"] == "rollback":
                return dict(line)
        return None

    def rounds(self, checkpoint: Path) -> int:
        """Number of rounds of auto-labels that a checkpoint descends from, by its lineage.

        Auto-labelled images of the checkpoint are one round, and those of each registered parent are another round.
        """
        lineage = lineage_of_checkpoint(checkpoint)
        named = ((weights_by_name(version.path), version.path) for version in self.versions())
        parents = {weights: path for weights, path in named if weights in lineage.parents}  # others are not read
        taught = (lineage, *map(lineage_of_checkpoint, parents.values()))
        return sum(any(image.source == "pseudo" for image in one.images.values()) for one in taught)

    def pin_champion(self, version: Version) -> None:
        """Make a version the reference that later candidates must not fall behind.

        Raises:
            IntegrityError: files of the version are damaged.
        """
        _check_whole(version)
        self._set_pin(version.name)

    def _set_pin(self, name: str) -> None:
        atomic.write_json(self._pin, {"version": name})

    def champion(self) -> Version | None:
        """The pinned reference, if there is one."""
        with self._pin_errors():
            name = self._pinned()
            return None if name is None else self.get(name)

    def _pinned(self) -> str | None:
        with self._pin_errors():
            return str(atomic.read_json(self._pin).get("version")) if self._pin.exists() else None

    @contextmanager
    def _pin_errors(self) -> Iterator[None]:
        try:
            yield
        except HmsaError as error:
            path = self._pin
            hint = f"`autolabel models pin VERSION` names another reference, `rm {path}` none until the next promotion"
            said = error.message if str(path) in error.message else f"{path}: {error.message}"
            raise InputError(said, hint=hint) from error

    def _switch(self, action: str, target: str, by: str, reason: str, *, now: str) -> None:
        if now == target:
            return
        by = by or user_name() or f"uid {os.getuid()}"
        line = {"action": action, "from": now, "to": target, "by": by, "reason": reason}
        if self.history()[-1:] != [line]:  # a switch that was killed after this line is not recorded twice
            records.append(self.folder / "history.jsonl", line)
        atomic.write_json(self.current_file, {"teacher": target})

    def _lock(self) -> FileLock:
        return FileLock(self.root / "work" / "locks" / "registry.lock", what="the model registry", wait_s=10)


def _check_whole(version: Version) -> None:
    if wrong := damage(version.path):
        raise IntegrityError(wrong, hint="`autolabel models register` of a folder with the same weights repairs it")


def _put(checkpoint: Path, path: Path, record: dict[str, Any]) -> None:
    """Make `path` a version in one step: hard links to the checkpoint's files, and the record."""
    with new_tree(path, last=("record.json",)) as folder:
        link_tree(checkpoint, folder)
        atomic.write_json(folder / "record.json", record)


def _up_to(taught: list[str], name: str) -> list[str]:
    """The list up to the last entry of `name`; [] without one."""
    return taught[: len(taught) - taught[::-1].index(name)] if name in taught else []


def _number_of(name: str) -> int:
    """The number in a version's name; 0 without one."""
    digits = name.removeprefix("v").split("-")[0]
    return int(digits) if digits.isdecimal() else 0


def user_name() -> str:
    """The user's name; "" where the user id has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


# -- folders of models -------------------------------------------------------------------------------


def damage(checkpoint: Path) -> str:
    """Describe a checkpoint folder's fault: a file missing, unreadable, or different from its digest; "" = no fault."""
    weights, meta = checkpoint / "model.safetensors", checkpoint / "model.json"
    for path in (weights, meta):
        if not path.exists():
            return f"{path} is missing"
    try:
        recorded = sealed.read(meta).get("weights_sha256")
        if (actual := atomic.sha256_file(weights)) != recorded:
            return f"{weights}: bytes differ from model.json's digest (sha256 is {actual}, recorded {recorded})"
        lineage_of_checkpoint(checkpoint)  # a model without a readable lineage cannot be judged on any image
    except HmsaError as error:
        return error.message
    except OSError as error:
        return one_line(error)
    return ""


def knows_other_classes(checkpoint: Path, classes: ClassTable) -> bool:
    """Whether a checkpoint states other classes than these; False if it states none."""
    known = ClassTable.of_meta(atomic.read_json(checkpoint / "model.json"))
    return known is not None and known.classes != classes.classes


def version_damage(folder: Path) -> str:
    """Describe the fault of a registered model's checkpoint or record; "" = no fault. A missing record is no fault."""
    record = folder / "record.json"
    try:
        if record.exists():
            read_record(record)
    except HmsaError as error:
        return error.message
    return damage(folder)


def read_record(path: Path) -> dict[str, Any]:
    """Read a version's record.json; an IntegrityError if the file is damaged or one of its numbers is invalid."""
    record = atomic.read_json(path)
    if not isinstance(record.get("number"), int):
        raise IntegrityError(f"{path}: number is {record.get('number')!r}, expected a whole number")
    if not isinstance(metrics := record.get("metrics", {}), dict):
        raise IntegrityError(f"{path}: metrics is {metrics!r}, expected an object")
    if (miou := metrics.get("mean_iou")) is not None and not (isinstance(miou, int | float) and 0 <= miou <= 1):
        raise IntegrityError(f"{path}: metrics.mean_iou is {miou!r}, expected a number from 0 to 1")
    return record


def describes(folder: Path, checkpoint: Path) -> bool:
    """Whether a version of the same weights has a checkpoint's description, as far as this can be read.

    The same weights with other classes, inference settings or shapes are another model.
    """
    try:
        meta = sealed.read(folder / "model.json")
    except (HmsaError, OSError):
        return True
    other = atomic.read_json(checkpoint / "model.json")
    return all(meta.get(key) == other.get(key) for key in {*meta, *other}.difference(_HISTORY))


def weights_by_name(folder: Path) -> str:
    """Digest of a version's weights from its model.json; "" where that file cannot be read."""
    try:
        return str(atomic.read_json(folder / "model.json").get("weights_sha256", ""))
    except (HmsaError, OSError):
        return ""
