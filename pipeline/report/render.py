"""Render tables of figures as text for a terminal or as HTML for a page; text from data is escaped."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.meanings import meaning

_FIGURE = re.compile(r"[+−-]?[\d.,]+( %)?|–|")  # a column of such cells is aligned to the right

_WIDE = 40  # letters; a column with a longer text cell is wrapped


class Raw(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def esc(value: object) -> Raw:
    """Escape text for HTML; a `Raw` value is returned unchanged."""
    return value if isinstance(value, Raw) else Raw(html.escape(str(value)))


def number(value: float | None, digits: int = 2, *, scale: float = 1.0, sign: str = "") -> str:
    """A number as text; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * scale:{sign}.{digits}f}"


def points(value: float | None, digits: int = 1, *, sign: str = "") -> str:
    """A share, or a difference of shares ("+" as `sign`), in percent points."""
    return number(value, digits, scale=100.0, sign=sign)


@dataclass(frozen=True)
class Share:
    """A share in [0, 1], or a difference of shares, with its interval; shown in percent points."""

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 1
    sign: str = ""

    def __str__(self) -> str:
        return points(self.value, self.digits, sign=self.sign)

    @property
    def interval(self) -> str:
        """Both ends of the interval as text; "" without a value, "no interval" without ends (a single block)."""
        if self.value is None:
            return ""
        if self.low is None or self.high is None:
            return "no interval"
        return " … ".join(points(end, self.digits, sign=self.sign) for end in (self.low, self.high))

    def html(self) -> Raw:
        """The figure, with the interval in small type."""
        if self.value is None or self.low is None or self.high is None:
            return Raw(str(self))
        ends = (points(end, self.digits, sign=self.sign) for end in (self.low, self.high))
        return Raw(f'{self} <span class="range">{"…".join(ends)}</span>')


@dataclass(frozen=True)
class Name:
    """A name with its colour (RGB)."""

    text: str
    colour: Sequence[int]

    def __str__(self) -> str:
        return self.text

    def html(self) -> Raw:
        """A small square of the colour, then the name."""
        return Raw(f"{swatch(self.colour)}{esc(self.text)}")


@dataclass(frozen=True)
class Status:
    """Status of a class's threshold: measured, estimate, pooled, withheld or given."""

    text: str

    def __str__(self) -> str:
        return self.text

    def html(self) -> Raw:
        """The status as a coloured label."""
        return Raw(f"<span class='chip {esc(self.text)}'>{esc(self.text)}</span>")


@dataclass(frozen=True)
class Table:
    """Rows under a header. A cell is text, a number, `Raw`, `Share`, `Name` or `Status`."""

    head: Sequence[object]
    rows: Sequence[Sequence[object]]
    last_is_sum: bool = False

    def text(self) -> str:
        """The table as text: spaces align the columns, columns of figures to the right."""
        cells = [[str(cell) for cell in row] for row in (self.head, *self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.head))]
        right = [all(_FIGURE.fullmatch(row[i]) for row in cells[1:]) for i in range(len(self.head))]
        return "".join("  ".join(map(_aligned, row, widths, right)).rstrip() + "\n" for row in cells)

    def html(self) -> Raw:
        """The table as an HTML `<table>` that scrolls if it is wider than the page."""
        wide = [any(_is_wide(row[i]) for row in self.rows) for i in range(len(self.head))]

        def cells(tag: str, row: Sequence[object]) -> str:
            return "".join(_cell(tag, cell, is_wide) for cell, is_wide in zip(row, wide, strict=True))

        lines = ["<div class='scroll'><table><thead><tr>", cells("th", self.head), "</tr></thead><tbody>"]
        for i, row in enumerate(self.rows):
            kind = " class='sum'" if self.last_is_sum and i == len(self.rows) - 1 else ""
            lines += [f"<tr{kind}>", cells("td", row), "</tr>"]
        return Raw("".join([*lines, "</tbody></table></div>"]))


def _aligned(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def titled(name: str) -> str:
    """HTML attribute with the explanation of a figure's name; "" if there is none."""
    return f" title='{esc(meaning(name))}'" if meaning(name) else ""


def _is_wide(cell: object) -> bool:
    return isinstance(cell, str) and not isinstance(cell, Raw) and len(cell) > _WIDE


def _cell(tag: str, cell: object, wide: bool) -> str:
    """HTML of one table cell; the name of a figure gets its explanation as tooltip; a wide column is wrapped."""
    shown = cell.html() if isinstance(cell, Share | Name | Status) else esc(cell)
    tooltip = titled(cell) if isinstance(cell, str) else ""
    return f"<{tag}{tooltip}{' class=wrap' * wide}>{shown}</{tag}>"


def swatch(colour: Sequence[int]) -> Raw:
    """A small square of a class's colour (as an SVG, so that no inline style is needed)."""
    red, green, blue = colour
    return Raw(
        f'<svg class="swatch" viewBox="0 0 1 1"><rect width="1" height="1" fill="rgb({red},{green},{blue})"/></svg>'
    )


def data_uri(data: bytes, kind: str) -> str:
    """Encode bytes as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
