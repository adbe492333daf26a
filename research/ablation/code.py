"""Digests of the source files that decide a result, without comments, docstrings and blank lines.

Speed-ups and renames change them too: a cell whose code changed runs again, unless somebody who checked it says why it
need not (`autolabel ablate NAME --accept REASON`; the reason stays in the cell).
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hmsa_core.io import atomic
from pipeline.provenance import REPOSITORY

__all__ = ["REPOSITORY", "changed_files", "group_files", "source_digests", "stripped"]

# What decides the weights of a training, the counts of an evaluation, the labels of the auto-labelled half, the scenes.
_GROUPS: dict[str, tuple[str, ...]] = {
    "train": (
        "hmsa_core/models/*.py",
        "hmsa_core/losses/*.py",
        "hmsa_core/data/dataset.py",
        "hmsa_core/data/plan.py",
        "hmsa_core/data/draw.py",
        "hmsa_core/data/transforms.py",
        "hmsa_core/data/geometry.py",
        "hmsa_core/data/sampling.py",
        "hmsa_core/data/decode.py",
        "hmsa_core/training/train.py",
        "hmsa_core/training/trainer.py",
        "hmsa_core/training/schedule.py",
        "hmsa_core/runtime/seeds.py",
        "hmsa_core/training/average.py",
        "hmsa_core/training/rundata.py",
        "hmsa_core/training/timeline.py",
        "hmsa_core/training/parallel.py",
        "hmsa_core/training/feed.py",
        "hmsa_core/data/roles.py",
        "hmsa_core/data/polygons.py",
    ),
    "evaluate": (
        "hmsa_core/inference/evaluate.py",
        "hmsa_core/inference/evaluate_scores.py",
        "hmsa_core/engine/fast*.py",
        "hmsa_core/metrics/confusion.py",
        "hmsa_core/metrics/boundary.py",
        "hmsa_core/inference/infer.py",
    ),
    "labels": (
        "hmsa_core/labels/store/codes.py",
        "hmsa_core/labels/thresholds/curves.py",
        "hmsa_core/labels/thresholds/measure.py",
        "hmsa_core/labels/thresholds/policy.py",
        "hmsa_core/labels/thresholds/calibration.py",
        "hmsa_core/labels/merge.py",
        "hmsa_core/labels/masks.py",
        "hmsa_core/labels/finalise.py",
        "hmsa_core/labels/thresholds/cuts.py",
        "hmsa_core/labels/thresholds/intervals.py",
        "hmsa_core/labels/store/histogram.py",
        "hmsa_core/labels/store/codec.py",
        "hmsa_core/engine/infer*.py",
        "hmsa_core/engine/fast*.py",
        "pipeline/stages/precision.py",
        "pipeline/stages/pseudo_label.py",
        "research/ablation/labels.py",
    ),
    "scenes": ("examples/streets/*.py",),
}
_DIGITS = 12


def group_files(groups: tuple[str, ...], root: Path = REPOSITORY) -> list[Path]:
    """Source files of the named groups, sorted, relative to the repository."""
    found = {path.relative_to(root) for group in groups for pattern in _GROUPS[group] for path in root.glob(pattern)}
    return sorted(found)


def source_digests(groups: tuple[str, ...], root: Path = REPOSITORY) -> dict[str, str]:
    """{file: twelve hex digits} of what the files of the groups do."""
    return {str(path): _digest_of((root / path).read_text("utf-8")) for path in group_files(groups, root)}


@cache
def _digest_of(text: str) -> str:
    return atomic.sha256_bytes(stripped(text).encode())[:_DIGITS]


def changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Files that are new, gone or different, sorted."""
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def stripped(text: str) -> str:
    """Python source without comments, docstrings, blank lines and trailing blanks: the same on every Python."""
    lines = text.splitlines()
    for line, column in _comments(text):
        lines[line - 1] = lines[line - 1][:column]
    for first, last in _docstrings(text):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(kept for line in lines if (kept := line.rstrip())) + "\n"


def _comments(text: str) -> list[tuple[int, int]]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.start for token in tokens if token.type == tokenize.COMMENT]


def _docstrings(text: str) -> list[tuple[int, int]]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    spans = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, owners) or not node.body:
            continue
        first = node.body[0]
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        if is_text and isinstance(first.value.value, str):  # type: ignore[attr-defined]  # is_text says so
            spans.append((first.lineno, first.end_lineno or first.lineno))
    return spans
