"""Classes of the label maps: names of a source matched with the values that the maps hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmsa_core import taxonomy
from hmsa_core.inference.teachers.classes import named_classes
from hmsa_core.io.errors import InputError, did_you_mean
from hmsa_core.taxonomy.class_files import KNOWN, ClassList, Named, class_list, find_class_file, is_void, known_classes
from pipeline.plan.findings import Findings
from pipeline.plan.reading import Reading, folders_of_classes
from pipeline.plan.values import MOST_CLASSES, Values, colour_of, packed

_BLACK = 0
_LEAST_KNOWN = 5  # colours of a public label set that name it by themselves
_SHOWN = 6
_MANY_MAPS, _HARDLY = 10, 0.001  # label maps; share of all pixels


@dataclass
class Classes:
    """The class table of a plan: names by value, in the order of trainIds, and values that mean no class."""

    where: str
    names: dict[int, str] = field(default_factory=dict)  # value -> name
    colours: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    void: list[int] = field(default_factory=list)
    by_colour: bool = False
    assumed: frozenset[int] = frozenset()  # of `void`: values that nothing names

    def to_json(self) -> dict[str, Any]:
        """The class file of the workspace."""
        values = sorted(self.names) if not self.by_colour else list(self.names)
        ids = {value: place if self.by_colour else value for place, value in enumerate(values)}
        rows = [self._row(value, ids[value], place) for place, value in enumerate(values)]
        rows += [self._void(value, place) for place, value in enumerate(self.void, len(rows))]
        taken = {row["id"] for row in rows if row["trainId"] != taxonomy.IGNORE}
        return {"dataset": "own", "ignore_id": max(set(range(256)) - taken), "classes": rows}

    def _void(self, value: int, place: int) -> dict[str, Any]:
        """A row of pixels without a class: an id, or a colour with an id that nothing has."""
        row = {"id": place if self.by_colour else value, "name": f"void {value}", "trainId": taxonomy.IGNORE}
        return row | ({"colour": list(colour_of(value))} if self.by_colour else {})

    def _row(self, value: int, number: int, place: int) -> dict[str, Any]:
        row: dict[str, Any] = {"id": number, "name": self.names[value], "trainId": place}
        if value in self.colours:
            row["colour"] = list(self.colours[value])
        return row | ({"group": self.groups[value]} if value in self.groups else {})


def find_classes(
    reading: Reading, values: Values, given: str | None, void: Collection[int] | None, findings: Findings
) -> Classes:
    """Names of the values that the label maps hold.

    Args:
        reading, values: the files, and what they hold.
        given: a file or the name of a public label set; None: what lies next to the files, else class_0, ...
        void: values that mean no class, as the user says; None: 255 of ids and black of colours.
        findings: gets what was assumed.

    Raises:
        InputError: no such source, values without a name, or fewer than two classes.
    """
    source = given_classes(given, values) if given else find_class_file(folders_of_classes(reading))
    source = source or _recognised(values)
    if source is None:
        classes = _unnamed(values, _assumed(values, (), void))
    elif values.kind == "colours":
        classes = _by_colour(source, values, void)
    else:
        classes = _by_id(source, values, void)
    _check_values(values, classes, findings)
    if void is None and (assumed := [value for value in classes.assumed if value in values.pixels]):
        text = f"{_listed(values, assumed)} is taken as unlabelled"
        findings.note(text, "--void none makes it a class, --void VALUE,VALUE names others")
    is_black = classes.by_colour and not _grey(values)  # grey colours are numbers
    is_background = is_black or classes.names.get(0, "").lower() == "background"
    if void is None and is_background and _BLACK in classes.names and _BLACK in values.pixels:
        text = f"{_listed(values, [_BLACK])} is class {classes.names[_BLACK]}, as {classes.where} says"
        findings.note(text, f"--void {'000000' if classes.by_colour else '0'} makes it unlabelled")
    if source is None and (odd := _odd(values, classes)):
        findings.note(f"{_listed(values, odd)} in one label map alone", "correct the map, or say --void VALUE,VALUE")
    if len(classes.names) > MOST_CLASSES:
        raise InputError(
            f"{reading.source.labels}: {len(classes.names)} classes, a label is one byte: at most {MOST_CLASSES}",
            hint="merge classes, or give the folder of class ids where these are ids of single things",
        )
    if len(classes.names) < 2:
        raise InputError(
            f"{reading.source.labels}: the label maps show {', '.join(classes.names.values()) or 'no class'} and void "
            "pixels alone: there is nothing to tell apart",
            hint="label a second class, or say with --void none that 0 and 255 are classes",
        )
    return classes


def _odd(values: Values, classes: Classes) -> list[int]:
    """Values without a name that hardly occur: what conversions and soft edges leave behind."""
    enough = len(values.of_image) >= _MANY_MAPS
    return [v for v in sorted(classes.names) if enough and values.maps[v] == 1 and values.share(v) < _HARDLY]


def teachers_classes(given: str | None, teacher: str) -> Classes:
    """Classes of labels that another network makes: those of `--classes`, else the network's own names.

    Raises:
        ConfigError: the network names none.
    """
    if given is None:
        table = named_classes(teacher)
        facts = zip(table.classes, range(table.num_classes), table.colours, table.groups, strict=True)
        source = ClassList(teacher, tuple(Named(*row) for row in facts))
    else:
        source = given_classes(given)
    rows = tuple(row for row in source.rows if not is_void(row))
    numbered = {row.id if source.has_ids and row.id is not None else place: row for place, row in enumerate(rows)}
    names = {value: row.name for value, row in numbered.items()}
    return _classes(source.where, names, Values("ids"), numbered, (), ())


def given_classes(given: str, values: Values | None = None) -> ClassList:
    """Classes of `--classes FILE|NAME`. InputError: there is no such file or name."""
    if Path(given).is_file():
        return class_list(Path(given))
    name = {"mapillary": "mapillary_v1.2"}.get(given, given)
    has_255 = values is not None and values.kind == "ids" and taxonomy.IGNORE in values.pixels
    if name == "camvid" and values is not None and _strange(values, known_classes("camvid")):
        name = "camvid32"
    found = known_classes(name, has_255=has_255)
    if found is None:
        raise InputError(
            f"--classes {given}: no such file, and no label set of this name",
            hint=did_you_mean(given, KNOWN, f"give a file, or one of {', '.join(KNOWN)}"),
        )
    return found


def _strange(values: Values, known: ClassList | None) -> set[int]:
    """Values of colour maps that a list of classes does not name."""
    rows = known.rows if known else ()
    named = {packed(row.colour) for row in rows if row.colour} | {_BLACK}
    return set(values.pixels) - named if values.kind == "colours" else set()


def _recognised(values: Values) -> ClassList | None:
    """The public label set that has all colours of the maps."""
    if values.kind != "colours" or len(set(values.pixels) - {_BLACK}) < _LEAST_KNOWN:
        return None
    lists = (known_classes(name) for name in KNOWN)
    fitting = [one for one in lists if one and one.has_colours and not _strange(values, one)]
    return min(fitting, key=lambda one: len(one.rows), default=None)


def _grey(values: Values) -> dict[int, int]:
    """{colour: number} where all colours are grey: ids that were saved in three equal channels."""
    parts = {value: colour_of(value) for value in values.pixels}
    return {v: c[0] for v, c in parts.items()} if all(len(set(c)) == 1 for c in parts.values()) else {}


def _assumed(values: Values, named: Collection[int], void: Collection[int] | None) -> set[int]:
    """Values that mean no class: what the user says, else 255 of ids and black of colours, if nothing names them."""
    if void is not None:
        return set(void)
    grey = _grey(values) if values.kind == "colours" else {}
    if not named and _is_mask(values):
        return set()
    usual = {value for value, number in grey.items() if number == taxonomy.IGNORE}
    usual |= ({_BLACK} if not grey else set()) if values.kind == "colours" else {taxonomy.IGNORE}
    return (usual & set(values.pixels)) - set(named)


def _is_mask(values: Values) -> bool:
    """A mask of one thing: 0 and 255, or black and white."""
    return set(values.pixels) == {0, taxonomy.IGNORE if values.kind == "ids" else packed((255, 255, 255))}


def _unnamed(values: Values, void: set[int]) -> Classes:
    """class_0, class_1, ...: of ids by the id; of colours in the order of their share of pixels."""
    found = set(values.pixels) - void
    grey = _grey(values) if values.kind == "colours" else {}
    order = sorted(found) if values.kind == "ids" or grey else [v for v, _ in values.pixels.most_common() if v in found]
    number = {value: place for place, value in enumerate(order)} if values.kind == "colours" and not grey else {}
    is_mask = _is_mask(values)  # foreground and background
    names = {
        value: f"class_{place if is_mask else number.get(value, grey.get(value, value))}"
        for place, value in enumerate(order)
    }
    return _classes("no file of class names", names, values, {}, void, void)


def _by_id(source: ClassList, values: Values, void: Collection[int] | None) -> Classes:
    by_colour = {row.colour: row for row in source.rows if row.colour}
    no_class = {taxonomy.IGNORE, *(void or ())}
    shown = {value: values.palette.get(value) for value in values.pixels if value not in no_class}
    if (0, 0, 0) not in by_colour:  # black that nothing names is no class
        shown = {value: colour for value, colour in shown.items() if colour != (0, 0, 0)}
    if shown and all(colour in by_colour for colour in shown.values()):  # the palette says which number is which class
        return _matched(source, {v: by_colour[colour] for v, colour in shown.items() if colour}, values, void)
    return _matched(source, _by_number(source, values, void), values, void)


def _by_number(source: ClassList, values: Values, void: Collection[int] | None) -> dict[int, Named]:
    """Rows by id; names in a list count from 0, or from 1 where 0 is no class and the last id needs it."""
    values_of = {value for value in values.pixels if value != taxonomy.IGNORE}
    has_0 = 0 in values_of and not (void is not None and 0 in void)
    first = 1 if not has_0 and len(source.rows) in values_of else 0
    return dict(source.numbered(first))


def _by_colour(source: ClassList, values: Values, void: Collection[int] | None) -> Classes:
    if source.has_colours and (not (grey := _grey(values)) or not _strange(values, source)):
        rows: dict[int, Named] = {}
        for row in sorted(source.rows, key=is_void):  # what is no class may have the colour of another row
            first = rows.setdefault(packed(row.colour), row) if row.colour else row
            if first is not row and not is_void(row):
                raise InputError(
                    f"{source.where}: classes {first.name} and {row.name} have one colour",
                    hint="give each class a colour of its own, or label maps of ids",
                )
        return _matched(source, rows, values, void)
    if grey := _grey(values):
        by_id = _by_number(source, values, void)
        return _matched(source, {v: by_id[n] for v, n in grey.items() if n in by_id}, values, void)
    raise InputError(
        f"{source.where} has no colours, and the label maps hold colours: {_listed(values, sorted(values.pixels))}",
        hint="write name:r,g,b lines, one a class",
    )


def _matched(source: ClassList, rows: dict[int, Named], values: Values, void: Collection[int] | None) -> Classes:
    assumed = _assumed(values, rows, void)
    ignored = {value for value, row in rows.items() if is_void(row)} | assumed
    strange = sorted(set(values.pixels) - rows.keys() - ignored)
    if strange:
        unlabelled = sorted({*strange, *assumed})  # the option replaces what is assumed without it
        flag = "--void " + ",".join(_text(values, value).removeprefix("#") for value in unlabelled)
        raise InputError(
            f"{source.where} names no class for {_listed(values, strange)}",
            hint=f"add the class to a file for --classes, or take these pixels as unlabelled with {flag!r}",
        )
    names = {value: row.name for value, row in rows.items() if value not in ignored}
    return _classes(source.where, names, values, rows, ignored, assumed)


def _classes(
    where: str,
    names: dict[int, str],
    values: Values,
    rows: dict[int, Named],
    void: Collection[int],
    assumed: Collection[int],
) -> Classes:
    is_colours = values.kind == "colours"
    if wrong := [value for value in names if not (is_colours or 0 <= value <= taxonomy.IGNORE)]:
        raise InputError(
            f"{where}: class {names[wrong[0]]!r} has id {wrong[0]}, ids are 0 to {taxonomy.IGNORE}",
            hint="remove the class, or renumber it there and in the label maps",
        )
    colours = {value: colour_of(value) for value in names} if is_colours else {}
    for value in names if not is_colours else ():
        named = rows[value].colour if value in rows else None
        if colour := values.palette.get(value, named):
            colours[value] = colour
    groups = {value: rows[value].group for value in names if value in rows and rows[value].group}
    if len(set(colours.values())) < len(colours) or len(colours) < len(names):
        colours = {}
    return Classes(where, names, colours, groups, sorted(void), is_colours, frozenset(assumed))


def _check_values(values: Values, classes: Classes, findings: Findings) -> None:
    if not values.pixels.keys() & classes.names.keys():
        raise InputError(
            f"the label maps hold void pixels alone: {_listed(values, sorted(values.pixels))}",
            hint=f"{classes.where} may be the names of other maps: --classes FILE|NAME gives others; or --void none"
            if classes.void and not classes.assumed
            else "give the folder of maps that people drew, or say with --void none that these values are classes",
        )
    empty = [image for image, shown in values.of_image.items() if not shown & classes.names.keys()]
    text = f"{len(empty)} label maps show no class, first {min(empty, default='')}"
    findings.count(len(empty), len(values.of_image), text, "remove them: images without a label map are auto-labelled")
    if absent := [name for value, name in classes.names.items() if value not in values.pixels]:
        few = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
        findings.note(f"no label map shows {few}", "label images that do; no network can learn these classes")


def _listed(values: Values, chosen: list[int]) -> str:
    """Values with their share of pixels and an image that shows them."""
    return "; ".join(_each(values, chosen[:_SHOWN])) + ("; ..." if len(chosen) > _SHOWN else "")


def _each(values: Values, chosen: list[int]) -> Iterator[str]:
    for value in chosen:
        what = "value" if values.kind == "ids" else "colour"
        share, image = 100 * values.share(value), values.example[value]
        yield f"{what} {_text(values, value)} ({share:.2g} % of pixels, e.g. {image})"


def _text(values: Values, value: int) -> str:
    return str(value) if values.kind == "ids" else "#{:02x}{:02x}{:02x}".format(*colour_of(value))
