"""Write the tables of the pages in docs and research from research/tables.

python -m research.results                        (write the pages)
python -m research.results --check                (status 1 where a page is not what the tables give)
python -m research.results --show merging         (all figures of one table, as Markdown)
python -m research.results --collect workspaces/camvid --name camvid      (the figures of a finished workspace)

The prose of a page is written by hand. Between `<!-- figures: WHAT -->` and `<!-- end -->` stands what is made here:
`claims GROUP`, `workspaces NAME ...`, `goals`, `bench` or `scaling`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hmsa_core.io.atomic import write_text
from hmsa_core.io.errors import ConfigError
from hmsa_core.metrics.bootstrap import holm
from pipeline.cli.main import run_command
from pipeline.workspace.workspace import Workspace
from research.bench.goals import bench_lines, goals_lines, gpu_lines, scaling_lines
from research.claims import CLAIMS, Claim
from research.collect import WORKSPACES, collect
from research.figures import CONFIRMING, EXPLORING, TABLES, figures
from research.markdown import points, span, table

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = (
    "docs/scaling.md",
    "research/bench/README.md",
    *(f"research/notes/{n}.md" for n in ("camvid", "labels", "scales", "scratch")),
)
_BLOCK = re.compile(r"(<!-- figures: ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
Metrics = dict[str, float | None]


class Tables:
    """The figures of a folder of tables, by table, row, setting and class."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, dict[tuple[str, str, str], Metrics]] = {}
        self._seeds: dict[tuple[str, str, str], list[int]] = {}

    def rows(self, file: str) -> dict[tuple[str, str, str], Metrics]:
        """{(row, setting, class): {metric: value}} of several seeds, or of none; the table's order."""
        if file not in self._found:
            known = self._found.setdefault(file, {})
            for line in figures(self.folder / f"{file}.parquet"):
                if line.seed is None or file == WORKSPACES:
                    row = f"{line.table}: {line.row}" if file == WORKSPACES else line.row
                    known.setdefault((row, line.setting, line.name), {})[line.metric] = line.value
                elif line.setting in (EXPLORING, CONFIRMING) and line.metric in ("mean_iou", "difference"):
                    self._seeds.setdefault((file, line.row, line.setting), []).append(line.seed)
        return self._found[file]

    def best(self, file: str, row: str) -> tuple[Metrics, str, list[int]] | None:
        """Figures of a row on its confirming seeds where there are some, else on the others; kind and seeds."""
        known = self.rows(file)
        for kind in (CONFIRMING, EXPLORING):
            if (row, kind, "") in known:
                return known[row, kind, ""], kind, self._seeds.get((file, row, kind), [])
        return None


def _seeds(seeds: Sequence[int], kind: str) -> str:
    return f"{len(seeds)} {kind}"


def _claims(tables: Tables, group: str) -> list[str]:
    """The claims of a group with their verdicts."""
    lines: list[tuple[str, ...]] = []
    for claim in (c for c in CLAIMS if c.group == group):
        found = tables.best(claim.table, f"{claim.row} - {claim.baseline}")
        if found is None:
            lines.append((claim.text, claim.paper, "-", "-", "-", "not measured"))
            continue
        metrics, kind, seeds = found
        both = (span(metrics, m, sign=True) for m in ("difference", "boundary_difference"))
        lines.append((claim.text, claim.paper, *both, _seeds(seeds, kind), verdict(claim, metrics, len(seeds))))
    return table(("claim", "paper", "mIoU", "boundary IoU", "seeds", "verdict"), lines)


def verdict(claim: Claim, metrics: Metrics, seeds: int) -> str:
    """In words: "shown", "not shown" (zero is inside of the interval) or "contradicted" (zero is on the other side).

    A claim of no harm is about its allowance in place of zero. What one seed says is "suggested" at most.
    """
    low, high = metrics.get("difference_low"), metrics.get("difference_high")
    if low is None or high is None:
        return "not shown"
    if claim.hurts:
        low, high = -high, -low
    if low <= -claim.allowed <= high:
        return "not shown"
    words = ("shown", "contradicted") if seeds > 1 else ("suggested", "suggested the other way round")
    return words[low <= -claim.allowed]


def _workspaces(tables: Tables, *names: str) -> list[str]:
    """Models and differences of finished workspaces, in their main setting."""
    known = tables.rows(WORKSPACES)
    lines = []
    for name in names:
        for row in ("teacher", "control", "student", "student - control"):
            metrics = known.get((f"{name}: {row}", "multi", ""))
            if metrics:
                metric = "difference" if "difference" in metrics else "mean_iou"
                lines.append((name, row, span(metrics, metric, sign=metric == "difference"), _count(metrics, "blocks")))
    return table(("workspace", "model", "mIoU", "blocks"), lines)


def _count(metrics: Metrics, name: str) -> str:
    value = metrics.get(name)
    return "-" if value is None else f"{value:.0f}"


def _show(tables: Tables, file: str) -> list[str]:
    """All figures over seeds: rows, differences with their classes, and what is left of them by Holm."""
    known = tables.rows(file)
    lines: list[str] = []
    for kind in (EXPLORING, CONFIRMING):
        mine = {row: metrics for (row, setting, name), metrics in known.items() if setting == kind and not name}
        differences = {row: m for row, m in mine.items() if "difference" in m}
        stands = holm([m["chance"] or 0.0 for m in differences.values()], 0.05)
        compared = [
            (
                f"`{row}`",
                span(m, "difference", sign=True),
                span(m, "boundary_difference", sign=True),
                "yes" if stand else "no",
                *_classes(known, row, kind),
            )
            for (row, m), stand in zip(differences.items(), stands, strict=True)
        ]
        header = ("difference", "mIoU", "boundary IoU", "stands by Holm", "classes that gain", "classes that lose")
        if mine:
            both = (
                (f"`{r}`", span(m, "mean_iou"), span(m, "boundary_iou")) for r, m in mine.items() if "mean_iou" in m
            )
            lines += [
                f"**{kind} seeds**",
                "",
                *table(("row", "mIoU", "boundary IoU"), both),
                "",
                *table(header, compared),
                "",
            ]
    other = [key for key in known if key[1] not in (EXPLORING, CONFIRMING)]
    rest = ((*key, ", ".join(f"{m} {v:g}" for m, v in known[key].items() if v is not None)) for key in other)
    return lines + (table(("row", "setting", "class", "figures"), rest) if other else [])


def _classes(known: dict[tuple[str, str, str], Metrics], row: str, kind: str) -> Iterable[str]:
    """The classes whose own interval excludes zero, largest first: those that gain, and those that lose."""
    mine = [(name, m) for (r, k, name), m in known.items() if (r, k) == (row, kind) and name]
    for end, sign in (("difference_low", 1.0), ("difference_high", -1.0)):
        some = [(name, m["difference"] or 0.0) for name, m in mine if sign * (m[end] or 0.0) > 0]
        ordered = sorted(some, key=lambda one: -sign * one[1])
        yield ", ".join(f"{name} {points(value, sign=True)}" for name, value in ordered) or "-"


_BLOCKS: dict[str, Callable[..., list[str]]] = {
    "claims": _claims,
    "workspaces": _workspaces,
    "goals": lambda tables: goals_lines(tables.folder),
    "bench": lambda tables: bench_lines(tables.folder),
    "gpu": lambda tables: gpu_lines(tables.folder),
    "scaling": lambda tables: scaling_lines(tables.folder),
}


def made_anew(text: str, tables: Path) -> str:
    """A page with its blocks of figures made from the tables.

    Raises:
        ConfigError: a block asks for what nobody makes.
    """
    known = Tables(tables)

    def block(match: re.Match[str]) -> str:
        what, *arguments = match[2].split()
        if what not in _BLOCKS:
            raise ConfigError(f"block {match[2]!r}: expected one of {', '.join(_BLOCKS)}")
        return match[1] + "\n".join(_BLOCKS[what](known, *arguments)) + "\n" + match[3]

    return _BLOCK.sub(block, text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; status 1 where a page is not up to date")
    what.add_argument("--show", metavar="TABLE", help="print all figures over seeds of a table")
    what.add_argument("--collect", type=Path, metavar="DIR", help="put a finished workspace's figures into the tables")
    parser.add_argument("--name", help="with --collect: name of the workspace in the table (default: its profile)")
    parser.add_argument("--tables", type=Path, default=TABLES, metavar="DIR", help="default: research/tables")


def run(args: argparse.Namespace) -> int:
    """Write, check, show or collect."""
    if args.collect is not None:
        sys.stdout.write(f"{collect(Workspace.find(args.collect), args.tables, args.name)} written\n")
        return 0
    if args.show is not None:
        known = sorted(path.stem for path in args.tables.glob("*.parquet"))
        if args.show not in known:
            raise ConfigError(f"no table {args.show!r}: choose one of {', '.join(known)}")
        sys.stdout.write("\n".join(_show(Tables(args.tables), args.show)) + "\n")
        return 0
    stale = 0
    for name in PAGES:
        path = REPOSITORY / name
        old = path.read_text("utf-8")
        new = made_anew(old, args.tables)
        if old != new:
            stale += 1
            sys.stderr.write(f"{name}: {'not up to date' if args.check else 'written'}\n")
            if not args.check:
                write_text(path, new)
    return 1 if args.check and stale else 0


def main(argv: list[str] | None = None) -> int:
    """Command line; bad input gives one line on standard error and the error's exit status."""
    return run_command("python -m research.results", sys.modules[__name__], sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
