"""Small pieces of HTML: everything that comes from data is escaped."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence

__all__ = ["Raw", "data_uri", "esc", "number", "points", "span_of", "swatch", "table"]


class Raw(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def esc(value: object) -> Raw:
    """Escape text; `Raw` passes."""
    return value if isinstance(value, Raw) else Raw(html.escape(str(value)))


def number(value: float | None, digits: int = 2, *, scale: float = 1.0) -> str:
    """A number, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * scale:.{digits}f}"


def points(value: float | None, digits: int = 1) -> str:
    """A share as percent points."""
    return number(value, digits, scale=100.0)


def span_of(value: Sequence[float | None] | None) -> Raw:
    """[value, low, high] as percent points with the interval in small type."""
    if not value or value[0] is None:
        return Raw("–")
    if value[1] is None or value[2] is None:
        return Raw(points(value[0]))
    return Raw(f'{points(value[0])} <span class="range">{points(value[1])}…{points(value[2])}</span>')


def swatch(colour: Sequence[int]) -> Raw:
    """A small square of a class's colour (as an SVG: no inline style is needed)."""
    red, green, blue = colour
    return Raw(
        f'<svg class="swatch" viewBox="0 0 1 1"><rect width="1" height="1" fill="rgb({red},{green},{blue})"/></svg>'
    )


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, last_is_sum: bool = False) -> Raw:
    """A table; cells are escaped unless they are Raw."""
    body = [list(row) for row in rows]
    lines = ["<div class='scroll'><table><thead><tr>", *(f"<th>{esc(h)}</th>" for h in head), "</tr></thead><tbody>"]
    for i, row in enumerate(body):
        kind = " class='sum'" if last_is_sum and i == len(body) - 1 else ""
        lines += [f"<tr{kind}>", *(f"<td>{esc(c)}</td>" for c in row), "</tr>"]
    return Raw("".join([*lines, "</tbody></table></div>"]))


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Bytes as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
