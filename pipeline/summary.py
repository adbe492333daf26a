"""A workspace's results on one screen (`autolabel stage --summary`): who scores what, what the thresholds keep."""

from __future__ import annotations

from typing import Any

from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import InputError
from pipeline.workspace import Workspace

__all__ = ["summary_text"]


def summary_text(ws: Workspace) -> str:
    """Mean IoU of every judged model with its interval; kept precision and coverage of each class.

    Raises:
        InputError: `evaluate` has not run yet.
    """
    path = ws.path("evaluation/metrics.json")
    if not path.exists():
        raise InputError(f"{path}: not there", hint="run `dvc repro` first")
    metrics = read_json(path)
    if "unverified" in metrics:
        return f"{metrics['unverified']}\n"
    lines = [f"{ws.root}: {metrics['judgement']['judged']} report images", "", *_models(metrics), "", *_kept(metrics)]
    verdict = read_json(ws.path("evaluation/verdict.json"))
    sentence = verdict.get("sentence", "")
    why = [f"Why: {reason}" for reason in verdict.get("reasons", []) if reason != sentence]
    return "\n".join([*lines, "", sentence, *why, *verdict.get("notes", [])]) + "\n"


def _models(metrics: dict[str, Any]) -> list[str]:
    width = max(24, *map(len, metrics["differences"])) + 2
    rows = [f"{'mean IoU, points':<{width}}{'setting':<10}{'value':>7}   95 % interval (blocks)"]
    for name, model in metrics["models"].items():
        for setting, interval in model["settings"].items():
            rows.append(f"{name:<{width}}{setting:<10}{_points(interval)}")
    main = metrics["main_setting"]
    for name, interval in metrics["differences"].items():
        setting = main if name.startswith(("student", "control")) else ""
        rows.append(f"{name:<{width}}{setting:<10}{_points(interval, '+')}")
    return rows


def _points(interval: dict[str, Any], sign: str = "") -> str:
    value, low, high = (interval[k] for k in ("value", "low", "high"))
    if value is None:
        return "no figure"
    if low is None or high is None:  # of one block nothing can be drawn
        return f"{100 * value:{sign}7.2f}   no interval ({interval['blocks']})"
    return f"{100 * value:{sign}7.2f}   [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}] ({interval['blocks']})"


def _kept(metrics: dict[str, Any]) -> list[str]:
    kept = metrics["kept"]
    rows = [
        f"pixels kept by threshold {kept['threshold']} on the report images{_where(kept)}",
        f"{'class':<20}{'status':<11}{'threshold':>9}{'precision':>11}{'coverage':>10}  95 % of precision",
    ]
    for name in metrics["classes"]:
        row = kept["classes"][name]
        rows.append(
            f"{name:<20}{row['status']:<11}{row['threshold'] or '-':>9}{_percent(row['precision']):>11}"
            f"{_percent(row['coverage']):>10}{_ends(row)}"
        )
    for name, prefix in (("all pixels", ""), ("mean of classes", "class_mean_")):
        precision, coverage = kept[f"{prefix}precision"], kept[f"{prefix}coverage"]
        rows.append(f"{name:<40}{_percent(precision):>11}{_percent(coverage):>10}")
    if "all_pixels" in kept:
        everywhere = kept["all_pixels"]
        shown = (_percent(everywhere[k]) for k in ("precision", "coverage"))
        rows.append("{:<40}{:>11}{:>10}".format("all pixels, inside polygons too", *shown))
        rows += _beside(everywhere["beside"], " (all pixels)")
    return rows + _beside(kept["beside"], _where(kept))


def _where(kept: dict[str, Any]) -> str:
    return "" if kept.get("region", "all") == "all" else ", outside of human polygons"


def _ends(row: dict[str, Any]) -> str:
    if row.get("upper") is None:
        return ""
    return f"  [{100 * row['lower']:.1f}, {100 * row['upper']:.1f}] ({row['blocks']})"


def _beside(beside: dict[str, Any], where: str) -> list[str]:
    if not beside["classes"]:
        return []
    rows = [
        "",
        f"one threshold for all instead, on {', '.join(beside['classes'])}{where}",
        f"{'':<44}{'worst precision':>16}  {'of':<16}{'class-mean coverage':>19}",
    ]
    return rows + [
        f"{row['name']:<44}{_percent(row['worst_precision']):>16}  {row['worst_class']:<16}"
        f"{_percent(row['class_mean_coverage']):>19}"
        for row in beside["rows"]
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
