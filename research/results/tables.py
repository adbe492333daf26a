"""Markdown of the pieces of the results page: tables, differences, intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hmsa_core.metrics import Interval
from research.ablation.statistics import Compared, RowSummary, Table

__all__ = [
    "ONE_SEED",
    "by_class",
    "claims",
    "folded",
    "gains",
    "giga",
    "points",
    "rows_table",
    "seeds",
    "span",
    "table",
    "verdict",
]

ONE_SEED = (
    "One seed: each side was trained once, and the interval covers the images, not how trainings of one recipe differ."
)

_BY_ONE_SEED = {"shown": "suggested", "not shown": "not shown", "contradicted": "suggested the other way round"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that a reader opens who wants them (GitHub folds them; elsewhere they stand below their title)."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>", ""]


def points(value: float | None, *, sign: bool = False) -> str:
    """A share in points, two decimals; - where there is none."""
    if value is None or value != value:
        return "-"
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def span(interval: Interval | Mapping[str, Any], *, sign: bool = False) -> str:
    """`value [low, high]` in points."""
    if isinstance(interval, Interval):
        value, low, high = interval.value, interval.low, interval.high
    else:
        value, low, high = (interval[k] for k in ("value", "low", "high"))
    if low is None or low != low:  # of one block there is none
        return points(value, sign=sign)
    return f"{points(value, sign=sign)} [{points(low, sign=sign)}, {points(high, sign=sign)}]"


def giga(macs: float) -> str:
    """Multiply-accumulates in units of 10^9 (three digits)."""
    return f"{macs / 1e9:.3g}"


def rows_table(found: Table) -> list[str]:
    """One line a row: seeds, mean IoU with its interval, boundary IoU, images seen, multiply-accumulates."""
    header = ("row", "seeds", "mIoU", "boundary IoU", "images seen", "GMAC a training", "GMAC an image")
    return table(header, [_row(row) for row in found.rows])


def _row(row: RowSummary) -> tuple[str, ...]:
    record = row.first
    trained = record["training"] is not None
    return (
        row.title,
        ", ".join(str(s) for s in sorted(row.cells)) if trained else "-",
        span(row.interval),
        span(row.boundary) if row.boundary else "-",
        f"{record['images_seen']:,}" if trained else "-",
        giga(record["macs"]["train_total"]) if trained else "-",
        giga(record["macs"]["inference_per_image"]),
    )


def claims(found: Table) -> list[str]:
    """One line a comparison: the differences with their intervals, and what follows for the mean IoU."""
    header = ("claim", "mIoU, points", "boundary IoU", "mIoU by seed", "images", "blocks", "verdict")
    return table(
        header,
        [
            (
                f"{c.comparison.claim} (`{c.comparison.row}` - `{c.comparison.baseline}`)",
                *gains(c),
                seeds(c),
                str(c.images),
                str(c.interval.blocks),
                verdict(c),
            )
            for c in found.compared
        ],
    )


def gains(compared: Compared) -> tuple[str, str]:
    """Differences in mean IoU and boundary IoU, with their intervals."""
    boundary = span(compared.boundary, sign=True) if compared.boundary else "-"
    return span(compared.interval, sign=True), boundary


def seeds(compared: Compared) -> str:
    """Each seed's own difference in mean IoU: three that agree tell more than their mean."""
    pairs = zip(compared.seeds, compared.interval.run_values, strict=True)
    return ", ".join(f"{seed}: {points(value, sign=True)}" for seed, value in pairs)


def verdict(compared: Compared) -> str:
    """What follows for the mean IoU; what one seed says is less than shown."""
    if not compared.single:
        return compared.verdict
    return _BY_ONE_SEED[compared.verdict] + " (one seed)"


def by_class(found: Table) -> list[str]:
    """What a difference is made of, one line a comparison: the classes whose own interval excludes zero."""
    scored = [k for k, name in enumerate(found.classes) if name]
    if not scored:
        return []
    lines = []
    for c in found.compared:
        order = sorted(scored, key=c.interval.class_value.__getitem__)
        gain = [k for k in reversed(order) if c.interval.class_low[k] > 0]
        lose = [k for k in order if c.interval.class_high[k] < 0]
        told = (
            ", ".join(f"{found.classes[k]} {points(c.interval.class_value[k], sign=True)}" for k in some) or "-"
            for some in (gain, lose)
        )
        lines.append((f"`{c.comparison.row}` - `{c.comparison.baseline}`", *told))
    return table(("difference", "classes that gain", "classes that lose"), dict.fromkeys(lines))
