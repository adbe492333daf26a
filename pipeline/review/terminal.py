"""Tables of `autolabel inspect`: pixels that a threshold keeps, per class and per image, for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hmsa_core.taxonomy import ClassTable

_TONES = dict.fromkeys(("certified", "measured"), "green") | dict.fromkeys(("estimate", "pooled"), "yellow")
_TONES |= dict.fromkeys(("given", "yours"), "cyan") | {"withheld": "red"}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _class_name(classes: ClassTable, row: dict[str, Any]) -> Text:
    red, green, blue = classes.colours[row["id"]]
    return Text("■ ", style=Style(color=f"rgb({red},{green},{blue})")) + Text(row["name"])


def _columns(table: Table, footers: Mapping[str, str], *, left: Collection[str]) -> None:
    """Add columns by their headings, each with its footer; those of figures are aligned to the right."""
    for heading, footer in footers.items():
        table.add_column(heading, justify="left" if heading in left else "right", footer=footer)


def _bar(share: float | None) -> Text:
    if share is None:
        return Text("")
    full = round(share / 10)
    return Text("━" * full, style="blue") + Text("─" * (10 - full), style="bright_black")


def _range(row: dict[str, Any]) -> str:
    low, high = row["precision_low"], row["precision_high"]
    if low is None:
        return ""
    return f"≥ {_share(low)}" if high is None else f"{_share(low)} – {_share(high)}"


def _title(stats: dict[str, Any]) -> str:
    return f"threshold {stats['threshold']}" if stats["threshold"] is not None else f"{stats['policy']}"


def print_stats(console: Console, stats: dict[str, Any], classes: ClassTable, unfit: str = "") -> None:
    """One row per class: threshold, kept, coverage, precision and its source (`unfit`: why there is none)."""
    images = f"{stats['images']:,} image{'s' * (stats['images'] != 1)}"
    title = f"{stats['store']}  ·  {images}  ·  {_title(stats)}"
    table = Table(title=title, title_justify="left", show_footer=True)
    footers = {"class": "all", "threshold": "", "status": "", "kept pixels": f"{stats['kept']:,}"}
    footers |= {"coverage": _percent(stats["kept_share"]), "": "", "precision": _share(stats["precision"])}
    footers |= {"95 %": _range(stats), "source": stats["precision_source"] or "", "marginal": ""}
    _columns(table, footers, left=("class", "status", "", "source"))
    for row in stats["classes"]:
        table.add_row(
            _class_name(classes, row),
            row["threshold"],
            Text(row["status"], style=_TONES.get(row["status"], "")),
            f"{row['kept']:,}",
            _percent(row["coverage"]),
            _bar(row["coverage"]),
            _share(row["precision"]),
            _range(row),
            row["precision_source"] or "",
            _share(row["marginal_precision"], 0),
        )
    console.print(table)
    if stats["kept"] and all(row["precision"] is None for row in (stats, *stats["classes"])):
        advice = "No precision: give --policy for the calibration, or audit some pixels (`autolabel serve`)."
        console.print(unfit or advice, style="dim", markup=False, soft_wrap=True)


def print_step(console: Console, first: dict[str, Any], second: dict[str, Any], classes: ClassTable) -> None:
    """Two thresholds side by side: pixels that the step loses, and precision that the step gains."""
    title = f"{first['store']}  ·  {_title(first)} → {_title(second)}"
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("class", footer="all")
    for stats in (first, second):
        table.add_column(f"coverage\n{_title(stats)}", justify="right", footer=_percent(stats["kept_share"]))
    table.add_column("pixels", justify="right", footer=f"{second['kept'] - first['kept']:+,}")
    for stats in (first, second):
        table.add_column(f"precision\n{_title(stats)}", justify="right", footer=_share(stats["precision"]))
    table.add_column("source", footer=second["precision_source"] or "")
    for a, b in zip(first["classes"], second["classes"], strict=True):
        change = b["kept"] - a["kept"]
        table.add_row(
            _class_name(classes, a),
            _percent(a["coverage"]),
            _percent(b["coverage"]),
            Text(f"{change:+,}" if change else "0", style="red" if change < 0 else "green" if change else ""),
            _share(a["precision"]),
            _share(b["precision"]),
            b["precision_source"] or "",
        )
    console.print(table)


_METRIC = {"conflict": "conflict", "uncertain": "in doubt", "drop": "lost pixels"}


def print_images(
    console: Console, rows: Sequence[dict[str, Any]], total: int, sort: str, class_name: str | None
) -> None:
    """The most affected images, in the chosen order."""
    kind = sort.partition(":")[0]
    what = f" with {class_name}" if class_name else ""
    # A title of the table would be folded at the width of its columns.
    console.print(f"{len(rows)} of {total:,} image{'s' * (total != 1)}{what}, by {sort}", markup=False, soft_wrap=True)
    table = Table()
    shown = ["image", "city", "kept", *([_METRIC[kind]] if kind in _METRIC else []), "review"]
    _columns(table, dict.fromkeys(shown, ""), left=("image", "city", "review"))
    for row in rows:
        cells: list[Text | str] = [Text(row["name"]), Text(row["city"]), _percent(row["kept_share"])]
        if kind == "drop":
            cells.append(f"{row['drop']:,}")
        elif kind == "conflict":
            cells.append(_percent(100 * row["conflict"] / row["pixels"] if row["pixels"] else None))
        elif kind == "uncertain":
            cells.append(_share(row["uncertain"]))
        table.add_row(*cells, row["review"])
    console.print(table)
