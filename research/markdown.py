"""Markdown of tables, and figures as people read them: points, two decimals, intervals in brackets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]


def points(value: float | None, *, sign: bool = False) -> str:
    """A share in points; - where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def span(metrics: Mapping[str, float | None], name: str, *, sign: bool = False) -> str:
    """`value [low, high]` of a metric; the value alone where one block was judged."""
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if low is None or high is None:
        return points(value, sign=sign)
    return f"{points(value, sign=sign)} [{points(low, sign=sign)}, {points(high, sign=sign)}]"
