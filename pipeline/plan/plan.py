"""The plan of a workspace for one's own images: what is read, who may use it, the recipe, and the files that say so."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core import taxonomy
from hmsa_core.config import RuntimeConfig
from hmsa_core.data.index import ROLES
from hmsa_core.data.plain import deal_roles, place_images
from hmsa_core.data.source import SourceSpec
from hmsa_core.inference.teachers.sources import chosen_on, resolved
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import InputError
from pipeline.plan.blocks import TABLE, Roles, deal_images
from pipeline.plan.classes import Classes, find_classes, teachers_classes
from pipeline.plan.findings import Findings
from pipeline.plan.reading import Folders, Reading, read_folders
from pipeline.plan.recipe import Choice, Facts, Machine, recipe, recipe_of_labels, recipe_of_student
from pipeline.plan.values import Values, read_sizes, read_values
from pipeline.workspace.settings import as_yaml

if TYPE_CHECKING:
    from hmsa_core.inference.adopt.adopt import Adoption

_LOG = logging.getLogger(__name__)
Tell = Callable[[str], None]
TEACHER_FILE = "teacher.yaml"
_COLUMN = 52  # at which reasons begin
_HEAD = """\
# Made by `autolabel init` from your folders and this machine; the reason of each value stands next to it.
# What is not here has the default of the code (the paper's recipe): `autolabel config show` explains all settings.
"""
_DATA_REASONS = {
    "root": "the folder around yours",
    "image_name": "names of images; * is what image and label map share",
    "label_name": "names of label maps",
    "classes": "rename classes here",
    "names": "images are named by it",
    "pattern": "sequence and frame in the name",
    "block": "what counts as independent",
    "split_roles": "your splits; the rest is dealt",
    "deal": "by a hash of each block's name: images that arrive later move nobody",
}
_USES = {
    "learn": "train teacher and student",
    "calibrate": "measure thresholds",
    "report": "judge the result",
    "unlabelled": "get auto-labels",
    "guard": "not used, of a split that judges or too near to images that do",
}


@dataclass
class Plan:
    """What `autolabel init` writes, and the lines that it prints."""

    reading: Reading
    classes: Classes
    values: Values
    roles: Roles
    choices: list[Choice]
    findings: Findings = field(default_factory=Findings)
    adoption: Adoption | None = None  # how networks of others label

    @property
    def source(self) -> SourceSpec:
        """Settings of the data set."""
        return self.roles.source

    def files(self) -> dict[str, str]:
        """Texts of the workspace's files that hold the plan."""
        files = {
            "params.yaml": self.params_text(),
            "data/classes.json": json.dumps(self.classes.to_json(), indent=1, ensure_ascii=False) + "\n",
        }
        files |= {TABLE: self.roles.table} if self.roles.table else {}
        if self.adoption is not None:
            from hmsa_core.inference.adopt.report import to_yaml

            files[TEACHER_FILE] = to_yaml(self.adoption)
        return files

    def params_text(self) -> str:
        """The params.yaml: data, then the recipe, each value with its reason."""
        choices = [Choice("profile", "own", "planned from your folders"), *self._data(), *self.choices]
        return _HEAD + "\n".join(_lines(choices)) + "\n"

    def _data(self) -> Iterator[Choice]:
        defaults = SourceSpec()
        for key in SourceSpec.model_fields:
            value = getattr(self.source, key)
            if key != "name" and (value != getattr(defaults, key) or key in ("kind", "images", "labels", "classes")):
                yield Choice(f"data.target.{key}", value, _DATA_REASONS.get(key, ""))

    def lines(self) -> list[str]:
        """The plan in words."""
        source, reading = self.source, self.reading
        names = list(self.classes.names.values())
        shown = ", ".join(names[:8]) + (f", ... ({len(names)} classes)" if len(names) > 8 else "")
        form = "colours" if self.values.kind == "colours" else "palette ids" if self.values.palette else "ids"
        lines = [f"images     {len(reading.pairs.images)} in {reading.root / source.images}, {self.values.sizes_text}"]
        if source.labels:
            where = f"{len(reading.pairs.labels)} in {reading.root / source.labels}, {form}"
            lines.append(f"labels     {where}; names: image {source.image_name}, map {source.label_name}")
        lines += [f"new        {len(reading.new)} in {reading.root / source.new}"] if source.new else []
        lines += [f"coarse     {len(reading.coarse.labels)} in {reading.root / source.coarse}"] if source.coarse else []
        lines += [f"classes    {shown} ({self.classes.where})", f"blocks     {self.roles.how}"]
        if source.split_roles:
            lines.append("splits     " + ", ".join(f"{split}: {role}" for split, role in source.split_roles.items()))
        lines += [f"{'roles' if i == 0 else '':10} {text}" for i, text in enumerate(self._roles())]
        lines += [f"{'teacher' if i == 0 else '':10} {text}" for i, text in enumerate(self._teacher())]
        lines += [f"{'recipe' if i == 0 else '':10} {text}" for i, text in enumerate(self._recipe())]
        return lines + [f"{'note' if i == 0 else '':10} {text}" for i, text in enumerate(self.findings.notes)]

    def _roles(self) -> Iterator[str]:
        for role in ROLES:
            if images := self.roles.images(role):
                labelled = len(self.roles.images(role, labelled=True))
                blocks = f", {self.roles.blocks(role)} blocks" if labelled else ""
                yield f"{role:10} {len(images):5} images{blocks}: {_USES[role]}"

    def _teacher(self) -> Iterator[str]:
        if self.adoption is not None:
            from hmsa_core.inference.adopt.report import maps, table

            yield from (*maps(self.adoption), *table(self.adoption))

    def _recipe(self) -> Iterator[str]:
        shown = ("trunk", "crop", "epochs", "global_batch", "scales", "threshold", "ranks", "teacher")
        for choice in self.choices:
            if choice.key.rpartition(".")[2] in shown:
                yield f"{choice.key} {as_yaml(choice.value)}" + (f"  # {choice.why}" if choice.why else "")


def make_plan(
    folders: Folders,
    *,
    classes: str | None = None,
    void: Collection[int] | None = None,
    teacher: str | None = None,
    adopt: Sequence[str] = (),
    tell: Tell = _LOG.info,
    machine: Machine | None = None,
) -> Plan:
    """Plan a workspace from folders; nothing is written.

    Args:
        folders: of images, label maps, images to be labelled, coarse label maps.
        classes: a file of class names or the name of a public label set; None: found next to the label maps.
        void: values of label maps that mean no class; None: 255, and black.
        teacher: another network that labels (docs/inference.md); then no teacher is trained, and label maps may lack.
        adopt: in place of `teacher`, networks whose use is chosen now by images of role `learn`, as `adopt` does.
        tell: gets a line for each step of that.
        machine: where the chain will run; None: here.

    Raises:
        InputError: something about the data stops the plan; the message and the hint say what and what helps.
    """
    findings = Findings()
    reading = read_folders(folders, findings)
    if not reading.pairs.labels and teacher is not None:
        named = teachers_classes(classes, teacher)
        return _plan_of_labels(reading, named, machine or Machine.this(), _absolute(teacher), findings)
    if not reading.pairs.labels:
        raise InputError(
            f"{folders.images}: no label maps are given: nothing to learn from",
            hint="add --labels DIR, or let another network label: --teacher SPEC",
        )
    values = read_values(reading, findings)
    found = find_classes(reading, values, classes, void, findings)
    roles = deal_images(reading, values, found.names, findings)
    shares = [values.share(value) for value in found.names if value in values.pixels]
    coarse = any(f.coarse for f in roles.images("calibrate", labelled=True))
    facts = Facts(
        machine or Machine.this(),
        len(roles.images("learn", labelled=True)),
        values.size,
        roles.blocks("calibrate"),
        min(shares),
        roles.step,
        coarse,
        folders.coarse is not None,
    )
    if adopt:
        choices = recipe_of_student(facts, (TEACHER_FILE,))
        adoption = _adopted(adopt, reading, roles, found, findings, tell)
        return Plan(reading, found, values, roles, choices, findings, adoption)
    if teacher is None:
        return Plan(reading, found, values, roles, recipe(facts), findings)
    absolute = _absolute(teacher)
    _note_seen(roles, reading, absolute, findings)
    choices = recipe_of_student(facts, absolute)
    return Plan(reading, found, values, roles, choices, findings)


def _absolute(teacher: str) -> tuple[str, ...]:
    return resolved(teacher, lambda path: path.expanduser().resolve())


def _adopted(
    networks: Sequence[str], reading: Reading, roles: Roles, classes: Classes, findings: Findings, tell: Tell
) -> Adoption:
    """How the networks label best, by images that neither measure thresholds nor judge."""
    from hmsa_core.inference.adopt.adopt import adopt_pairs  # loads torch

    images = roles.images("learn", labelled=True)
    pairs = [(one.name, reading.root / one.image, reading.root / one.label) for one in images]
    table = taxonomy.of_json(classes.to_json(), Path("data/classes.json"))
    runtime = RuntimeConfig(threads=len(os.sched_getaffinity(0)), precision="fp32")
    found = adopt_pairs(networks, pairs, table, runtime, tell)
    for name in found.adopted.unconfirmed:
        findings.note(
            f"{name}: labels alone say what its classes are",
            f"compare them above, then delete the line `unconfirmed` in {TEACHER_FILE}; `dvc repro` stops before that",
        )
    return found


def _note_seen(roles: Roles, reading: Reading, teacher: Sequence[str], findings: Findings) -> None:
    """Images that shall judge, and by which `autolabel adopt` has chosen already."""
    seen = chosen_on(teacher)
    for role in ("report", "calibrate") if seen else ():
        images = roles.images(role, labelled=True)
        if count := sum(sha256_file(reading.root / one.image) in seen for one in images):
            findings.note(
                f"by {count} of the {len(images)} images of role {role} `autolabel adopt` has chosen how the networks "
                "are used, so their figures are a little too good",
                "`init --adopt NETWORK ...` chooses by images of role learn alone",
            )


def _plan_of_labels(
    reading: Reading, classes: Classes, machine: Machine, teacher: Sequence[str], findings: Findings
) -> Plan:
    """A workspace that labels, and trains nothing."""
    values = read_sizes(reading)
    found = place_images(reading.root, reading.source, {})
    roles = Roles(reading.source, found, deal_roles(found, reading.source), "none: there are no label maps")
    findings.note("without label maps nothing is measured", "`autolabel certify labels/raw` asks about pixels instead")
    return Plan(reading, classes, values, roles, recipe_of_labels(Facts(machine, 0, values.size, 0), teacher), findings)


def _lines(choices: Sequence[Choice]) -> Iterator[str]:
    """Lines of a YAML mapping from dotted keys; keys of one section stand together."""
    tree: dict[str, Any] = {}
    for choice in choices:
        *sections, name = choice.key.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = choice
    yield from _of_tree(tree, 0)


def _of_tree(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, node in tree.items():
        yield from ([""] if depth == 0 else [])
        if isinstance(node, dict):
            yield f"{'  ' * depth}{name}:"
            yield from _of_tree(node, depth + 1)
        else:
            line = f"{'  ' * depth}{name}: {as_yaml(node.value)}"
            yield f"{line:{_COLUMN}}  # {node.why}" if node.why else line
