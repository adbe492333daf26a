"""Sections of the results page that come from the cells of one ablation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hmsa_core.io.errors import HmsaError
from research.ablation.catalogue import camvid_folder
from research.ablation.cells import TRIED, Cell
from research.ablation.code import changed_files
from research.ablation.freeze import deviations, read_freeze
from research.ablation.plan import Ablation
from research.ablation.statistics import Cells, Table, after_holm, between_trainings, load_cells, summarise
from research.results.provenance import cells_lines, minutes_line, provenance_lines
from research.results.tables import ONE_SEED, by_class, claims, folded, points, rows_table, table

__all__ = ["Options", "ablation_section", "tables_of", "workspace_of"]


_BY_CLASS = (
    "What each difference is made of: the classes whose own interval excludes zero",
    "Points of IoU; not corrected for the number of classes. Where one or two seeds are compared, classes can stand "
    "here in which two trainings of one recipe differ.",
)
_NO_NAMES = "By class: not shown, no cell tells which class is which (classes of equal IoU)."


class Options:
    """Draws and seed of the bootstrap."""

    draws = 2000
    seed = 0


def tables_of(folder: Path, ablation: Ablation) -> dict[str, tuple[Cells, Table]]:
    """{"exploring" | "confirming": (cells, table)}, without the kinds that have no cells."""
    found = {}
    for kind in ("exploring", "confirming"):
        cells = load_cells(folder, confirming=kind == "confirming")
        if cells:
            order = [row.name for row in ablation.rows]
            made = summarise(cells, ablation.comparisons, order, draws=Options.draws, seed=Options.seed)
            found[kind] = (cells, made)
    return found


def ablation_section(folder: Path, ablation: Ablation, found: Mapping[str, tuple[Cells, Table]]) -> list[str]:
    """The section of one ablation from `tables_of`; what is not measured says how to measure it."""
    lines = [f"## {ablation.title}", ""]
    if not found:
        return [*lines, f"Not measured yet: `{ablation.command}`.", ""]
    lines += [f"`{ablation.command}`; cells: `research/cells/{ablation.name}/`.", *_freeze_lines(folder), ""]
    for kind, (cells, made) in found.items():
        title = "Exploring seeds" if kind == "exploring" else "Confirming seeds (opened after the freeze)"
        lines += [f"**{title}**", "", *rows_table(made), ""]
        lines += [*(claims(made) if made.compared else ["No two rows share a seed yet."]), "", *_noise(made, cells)]
        lines += [*_missing(ablation, cells), *_warnings(made, cells)]
        lines += [*(_not_as_frozen(folder, cells) if kind == "confirming" else []), *_accepted(cells), ""]
        records = [c.record for by in cells.values() for c in by.values()]
        lines += [*_material(records), *minutes_line(records), *provenance_lines(records), ""]
        lines += cells_lines(records, workspace_of(ablation.name))
    lines += [*_classes(found), *_details(_newest(found), [row.name for row in ablation.rows])]
    return [*lines, *_notes(folder)]


def workspace_of(name: str) -> str:
    """Where the commands of an ablation run, as the Makefile names it; "" for the checkout's own."""
    if "camvid" not in name:
        return ""
    if name.startswith("camvid-table-"):
        return f"workspaces/{camvid_folder(name.removeprefix('camvid-table-'))}"
    return f"workspaces/{name[name.index('camvid') :]}"


def _newest(found: Mapping[str, tuple[Cells, Table]]) -> Cells:
    """Of each row its confirming cells where there are some, else those that were looked at."""
    newest: Cells = {}
    for kind in ("exploring", "confirming"):
        newest |= found[kind][0] if kind in found else {}
    return newest


def _classes(found: Mapping[str, tuple[Cells, Table]]) -> list[str]:
    """What the differences are made of; of a difference without confirming seeds, the exploring ones."""
    lines: list[str] = []
    told: set[tuple[str, str]] = set()
    for kind in ("confirming", "exploring"):
        if kind not in found:
            continue
        made = found[kind][1]
        left = tuple(c for c in made.compared if (c.comparison.row, c.comparison.baseline) not in told)
        told |= {(c.comparison.row, c.comparison.baseline) for c in left}
        if left:
            classes = by_class(replace(made, compared=left))
            heading = f"{_BY_CLASS[0]} ({kind} seeds)"
            lines += folded(heading, [_BY_CLASS[1], "", *classes]) if classes else [_NO_NAMES, ""]
    return lines


def _noise(made: Table, cells: Cells) -> list[str]:
    """What a difference of two trainings is to be measured against, and what is left when all are taken together."""
    lines = _together(made)
    if any(c.single for c in made.compared):
        lines.append(ONE_SEED)
    apart = between_trainings(cells)
    if apart:
        usual, largest, pairs = apart
        lines.append(
            f"Two trainings of one row with other seeds lie {points(usual)} points apart (root mean square of {pairs} "
            f"pair{'s' * (pairs != 1)} of trainings), at most {points(largest)}."
        )
    return [" ".join(lines), ""] if lines else []


def _together(made: Table) -> list[str]:
    """Which differences do not exclude zero any more when one asks for all of the table at once."""
    number, fallen = after_holm(made.compared)
    if number < 2 or not any(c.interval.excludes_zero for c in made.compared):
        return []
    which = ", ".join(f"`{c.comparison.row}` - `{c.comparison.baseline}`" for c in fallen)
    told = f"these no longer exclude zero: {which}" if fallen else "the same ones exclude zero"
    return [f"Corrected for being {number} differences (Holm), {told}."]


def _material(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What no freeze of sources can hold still: the data and the weights that the cells of a table share."""
    trained = [r for r in records if r["training"] is not None]
    digests = {
        "fine images and labels": [(r["training"]["fine"], r["row"]) for r in trained],
        "weights at the start": [(r["training"]["start"] or "none", r["row"]) for r in trained],
        "judged images": [(r["evaluation"]["names"], r["row"]) for r in records],
    }
    same, other = [], []
    for what, found in digests.items():
        if not found:
            continue
        usual = Counter(digest for digest, _ in found).most_common(1)[0][0]
        rows = dict.fromkeys(row for digest, row in found if digest != usual)
        if rows:
            other.append(f"{what} differ in {', '.join(rows)}")
        else:
            same.append(f"{what} `{usual[:12]}`")
    told = [f"The same in all cells, by digest: {', '.join(same)}."] if same else []
    return [*told, *([f"**Not the same in all cells: {'; '.join(other)}.**"] if other else [])]


def _freeze_lines(folder: Path) -> list[str]:
    frozen = read_freeze(folder)
    if frozen is not None:
        return [
            f"Frozen before the confirming seeds {', '.join(map(str, frozen['confirming_seeds']))} were opened: "
            f"{frozen['variants_tried']} variants tried before. {frozen['note']} "
            f"(digest `{frozen['digest'][:16]}`, commit {(frozen['commit'] or 'no git')[:12]})"
        ]
    tried = folder / TRIED
    lines = [json.loads(line) for line in tried.read_text("utf-8").splitlines()] if tried.exists() else []
    replaced = f" {len(lines)} results were replaced by later variants (`{TRIED}`)." if lines else ""
    return [f"Not frozen: these seeds may have been looked at while the recipe was chosen.{replaced}"]


def _not_as_frozen(folder: Path, cells: Cells) -> list[str]:
    frozen = read_freeze(folder)
    if frozen is None:
        return ["No freeze is there for these seeds: they confirm nothing."]
    found = [(cell, deviations(frozen, cell)) for by in cells.values() for cell in by.values()]
    return [f"Not as frozen: {cell.row} seed {cell.seed} ({', '.join(what[:3])})." for cell, what in found if what]


def _missing(ablation: Ablation, cells: Cells) -> list[str]:
    left = [row.name for row in ablation.rows if row.name not in cells]
    return [f"Not measured yet: rows {', '.join(left)}.", ""] if left else []


def _warnings(made: Table, cells: Cells) -> list[str]:
    lines = []
    if made.unequal:
        lines.append(f"Another number of images seen than the others: {', '.join(made.unequal)}.")
    if made.mixed:
        lines.append(f"Seeds made with different settings or code: {', '.join(made.mixed)}.")
    files = _code_differences([c for by in cells.values() for c in by.values()])
    if files:
        some = ", ".join(f"`{f}`" for f in files[:4]) + (" and more" if len(files) > 4 else "")
        lines.append(f"Not all cells were made with the same sources: {some} differ.")
    return lines


def _accepted(cells: Cells) -> list[str]:
    """How many cells are older than the code, and folded the reasons for which each was kept."""
    kept: dict[str, dict[str, list[int]]] = {}
    for by in cells.values():
        for cell in by.values():
            for note in cell.record.get("accepted", []):
                kept.setdefault(note["reason"], {}).setdefault(cell.row, []).append(cell.seed)
    if not kept:
        return []
    lines = []
    for reason, rows in kept.items():
        which = ", ".join(f"{row} ({', '.join(map(str, sorted(set(seeds))))})" for row, seeds in rows.items())
        lines.append(f"- {reason}. Rows and seeds: {which}.")
    older = {(row, seed) for rows in kept.values() for row, seeds in rows.items() for seed in seeds}
    title = f"Cells older than the code: {len(older)}; each change of it was accepted for a reason ({len(lines)})"
    return ["", *folded(title, lines)]


def _code_differences(cells: Sequence[Cell]) -> list[str]:
    """Files of which two cells saw different versions."""
    first: dict[str, str] = {}
    differing: set[str] = set()
    for cell in cells:
        code: Mapping[str, str] = cell.record["code"]
        shared = {name: digest for name, digest in code.items() if name in first}
        differing |= set(changed_files({name: first[name] for name in shared}, shared))
        first |= {name: digest for name, digest in code.items() if name not in first}
    return sorted(differing)


def _details(cells: Cells, order: Sequence[str]) -> list[str]:
    """Weights of the scales, and the classes of the labels that were learned from."""
    lines: list[str] = []
    rows = [name for name in order if name in cells]
    weighted = [name for name in rows if _records(cells, name)[0]["details"].get("mean_weights")]
    if weighted:
        lines += ["Mean weight of each scale, away from boundaries and inside their band (mean of the seeds):", ""]
        lines += [*_weights_overall(cells, weighted), ""]
        shown = _most_scales(cells, weighted)
        lines += folded(f"The weights by class, row <code>{shown}</code>", _weights_by_class(_records(cells, shown)))
    labelled = [name for name in rows if _records(cells, name)[0]["labels"]]
    if labelled:
        lines += ["Share of all pixels that a class has in the labels of the auto-labelled half, percent:", ""]
        lines += [*_class_distribution(cells, labelled), ""]
    return lines


def _most_scales(cells: Cells, rows: Sequence[str]) -> str:
    """The row whose weights are shown by class: most scales, and of those the paper's fusion (explicit only alone)."""
    scales = {name: len(_records(cells, name)[0]["details"]["mean_weights"]) for name in rows}
    ours = [name for name in rows if not name.startswith("explicit")] or list(rows)
    return max(ours, key=lambda name: scales[name])


def _records(cells: Cells, row: str) -> list[dict[str, Any]]:
    return [cells[row][seed].record for seed in sorted(cells[row])]


def _weights_overall(cells: Cells, rows: Sequence[str]) -> list[str]:
    lines = []
    for name in rows:
        records = _records(cells, name)
        for scale in records[0]["details"]["mean_weights"]:
            places = [
                _mean([r["details"]["mean_weights"][scale][place] for r in records]) for place in ("interior", "band")
            ]
            lines.append((name, f"{scale}x", *(_share(p) for p in places)))
    return table(("row", "scale", "large regions", "boundary band"), lines)


def _weights_by_class(records: Sequence[Mapping[str, Any]]) -> list[str]:
    scales = list(records[0]["details"]["weights"])
    header = ["class", *(f"{s}x {place}" for s in scales for place in ("region", "band"))]
    lines = []
    for name in records[0]["iou"]:
        values = [
            _mean([r["details"]["weights"][s][place][name] for r in records])
            for s in scales
            for place in ("interior", "band")
        ]
        lines.append((name, *(_share(v) for v in values)))
    return table(header, lines)


def _class_distribution(cells: Cells, rows: Sequence[str]) -> list[str]:
    figures = {name: _records(cells, name)[0]["labels"] for name in rows}
    classes = list(next(iter(figures.values()))["classes"])
    lines = [(c, *(points(figures[r]["classes"][c]["share"]) for r in rows)) for c in classes]
    total = ("all labelled", *(points(figures[r]["labelled_share"]) for r in rows))
    return table(("class", *rows), [*lines, total])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _notes(folder: Path) -> list[str]:
    """Explanations by hand (contradictions of the paper, each with its test): research/cells/NAME/notes.md."""
    path = folder / "notes.md"
    if not path.exists():
        return []
    text = path.read_text("utf-8").strip()
    if text.startswith("#"):
        raise HmsaError(f"{path}: notes are paragraphs, not sections (a line starts with #)")
    return [text, ""]
