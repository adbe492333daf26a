"""What `autolabel adopt` found: as `teacher.yaml` with its reasons as comments, and as a table of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from hmsa_core.inference.adopt.adopt import Adoption
from hmsa_core.inference.adopt.fitting import Mapped


def to_yaml(found: Adoption, out: Path | None = None) -> str:
    """The text of the file at `out`; members below its folder are named relative to it. Without it by whole paths."""
    values = found.adopted.model_dump(
        mode="json", exclude_defaults=True, exclude={"class_table", "images", "unconfirmed"}
    )
    if out is not None:
        for member in values["members"]:
            member["teacher"] = _portable(member["teacher"], out.resolve().parent)
    lines = ["# A teacher made by `autolabel adopt`; chosen " + how(found) + "."]
    lines += [f"# {line}" for line in table(found)]
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    classes = yaml.safe_dump(found.adopted.class_table, sort_keys=False, default_flow_style=True, width=120)
    images = yaml.safe_dump({"images": list(found.adopted.images)}) if found.adopted.images else ""
    images = f"# labelled images by which all of this was chosen, SHA-256\n{images}" if images else ""
    doubt = yaml.safe_dump({"unconfirmed": list(found.adopted.unconfirmed)}, default_flow_style=None)
    doubt = f"# delete this line once you have compared `classes` below\n{doubt}" if found.adopted.unconfirmed else ""
    return "\n".join(lines) + f"\n{doubt}{text}# as in the class file\nclass_table: {classes}{images}"


def how(found: Adoption) -> str:
    """How it was chosen, in words."""
    return "by labels" if found.is_by_labels else "by agreement alone, without labels: check the result on some images"


def _portable(spec: str, folder: Path) -> str:
    family, colon, path = spec.rpartition(":")
    place = Path(path)
    return f"{family}{colon}{os.path.relpath(place, folder)}" if place.is_relative_to(folder) else spec


def table(found: Adoption) -> list[str]:
    """A line a member and one for the whole; then the thresholds and what stacking brought."""
    width = max(len(row.name) for row in found.rows)
    lines = [f"{'':{width}}  mIoU  interval      seconds/image  use"]
    for row in found.rows:
        score = "   -" if row.mean_iou is None else f"{100 * row.mean_iou:4.1f}"
        ends = "" if row.interval is None else f"[{100 * row.interval[0]:.1f}, {100 * row.interval[1]:.1f}]"
        lines.append(f"{row.name:{width}}  {score}  {ends:12}  {row.seconds:13.2f}  {row.how}".rstrip())
    for threshold, coverage, precision in found.kept:
        what = f"{coverage:.1%} of the pixels, {precision:.1%} of them right" if coverage else "no pixel"
        lines.append(f"threshold {threshold:g} keeps {what}")
    if len(found.kept) == 1:
        lines.append("no threshold keeps 1% of the pixels or more with 95% of them right")
    if found.certainty is not None:
        used = "used" if found.adopted.stacking else "not used"
        lines.append(f"stacking by class gains on held-out blocks with a certainty of {found.certainty:.0%}: {used}")
    return lines


def maps(found: Adoption) -> list[str]:
    """Each network's classes and ours, with the share of labelled pixels that agrees; then what no network gives."""
    lines: list[str] = []
    for row, one in zip(found.rows, found.maps, strict=False):
        lines.append(f"{row.name}:")
        lines += [f"  {_arrow(mapped, found.adopted.classes)}" for mapped in one if mapped.target is not None]
        left = [mapped.name for mapped in one if mapped.target is None]
        lines += [f"  ignored: {', '.join(left)}"] if left else []
    ours = found.adopted.classes
    given = {name for one in found.adopted.members for name in (ours if one.classes is None else one.classes.values())}
    if never := [name for name in ours if name not in given]:
        lines.append(f"no network in use gives these classes, so their pixels get others: {', '.join(never)}")
    return lines


def _arrow(one: Mapped, classes: Sequence[str]) -> str:
    share = "" if one.share is None else f", {one.share:.0%} of {one.pixels} drawn pixels"
    return f"{one.name} -> {classes[one.target or 0]} (by {one.why}{share})"
