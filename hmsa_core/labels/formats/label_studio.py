"""Label Studio: tasks with predictions, one brush region (RLE) for each class of an image.

Pictures are local files: start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=OUT. What comes back is its export "JSON" or "JSON-MIN".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import open_atomic, write_bytes, write_text
from hmsa_core.io.errors import InputError, needs_extra
from hmsa_core.labels.formats._item import About, Item
from hmsa_core.labels.formats._returned import Canvas, Exported, Returned, load_json, polygon

_FROM, _TO = "label", "image"
_ANSWERS = {"choices", "taxonomy", "text", "rating", "number", "datetime"}  # of controls without regions
_LOG = logging.getLogger(__name__)


def write(folder: Path, about: About, items: Iterator[Item]) -> None:
    """`images/`, `tasks.json` to import, `label_config.xml` for the project's labelling interface."""
    with needs_extra("exchange"):
        from label_studio_sdk.converter.brush import mask2rle
    names = about.classes.classes
    row = "    <Label value={} background={}/>\n"
    rows = "".join(row.format(quoteattr(name), quoteattr(about.colour(i))) for i, name in enumerate(names))
    write_text(
        folder / "label_config.xml",
        f'<View>\n  <Image name="{_TO}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{_FROM}" toName="{_TO}">\n{rows}  </BrushLabels>\n</View>\n',
    )
    model = f"autolabel {about.labels}"
    with open_atomic(folder / "tasks.json") as file:
        between = "[\n"
        for item in items:
            write_bytes(folder / "images" / item.file, item.picture)
            height, width = item.label.shape
            result = [
                {
                    "id": f"{item.name}-{class_id}",
                    "type": "brushlabels",
                    "from_name": _FROM,
                    "to_name": _TO,
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "value": {
                        "format": "rle",
                        # Its package has no types for it.
                        "rle": mask2rle((item.label == class_id) * np.uint8(255)),  # type: ignore[no-untyped-call]
                        "brushlabels": [names[class_id]],
                    },
                }
                for class_id in np.unique(item.label[item.label < len(names)]).tolist()
            ]
            data = {"image": f"/data/local-files/?d=images/{quote(item.file)}", "file": item.file}
            task = {"data": data, "predictions": [{"model_version": model, "result": result}]}
            file.write((between + json.dumps(task)).encode())
            between = ",\n"
        file.write(b"\n]\n" if between != "[\n" else b"[]\n")


def read(path: Path, exported: Exported) -> Iterator[Returned]:
    """Annotations of an export "JSON" or "JSON-MIN", each by its person, with its date; of cancelled ones nothing."""
    tasks, answers = load_json(path), 0
    if not isinstance(tasks, list):
        raise InputError(f"{path}: expected a list of tasks", hint='export as "JSON"')
    for task in tasks:
        data = task.get("data", task)  # JSON-MIN has one annotation a row, and no `data`
        name = exported.name_of(_file(data), path)
        where = f"{path}: {name}"
        if data is not task and "annotations" not in task:
            raise InputError(f"{where}: has no annotations", hint='export as "JSON"')
        for annotation in [_of_row(task)] if data is task else task["annotations"] or [{"result": []}]:
            results = [] if annotation.get("was_cancelled") else annotation["result"]
            regions = [each for each in results if not _is_answer(each)]
            answers += len(results) - len(regions)
            canvas = Canvas(exported.label(name), where)
            for region in regions:
                _paint(canvas, region, exported, where)
            yield Returned(
                name, canvas.label, _who(annotation.get("completed_by")), str(annotation.get("updated_at"))[:40]
            )
    if answers:
        _LOG.warning("%s: %d answers about whole pictures are not read: they label no pixels", path, answers)


def _file(data: dict[str, Any]) -> str:
    """Name of the photograph; where the key `file` is lost, of its address: uploaded ones begin with a hash."""
    if "file" in data:
        return str(data["file"])
    address = urlsplit(str(data["image"]))
    name = Path(parse_qs(address.query).get("d", [unquote(address.path)])[0]).name
    return name.partition("-")[2] if "/upload/" in address.path else name


def _of_row(row: dict[str, Any]) -> dict[str, Any]:
    """The annotation in a row of JSON-MIN: the regions of each control stand under the control's name."""
    given = [one for value in row.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
    regions = [one for one in given if "original_width" in one]
    return {"result": regions, "completed_by": row.get("annotator"), "updated_at": row.get("updated_at", "")}


def _who(by: Any) -> str:
    if isinstance(by, dict):
        by = by.get("email") or by.get("id")
    return f"user {by}" if isinstance(by, int) else str(by or "")[:200]


def _is_answer(region: dict[str, Any]) -> bool:
    return region.get("type") == "relation" or not _ANSWERS.isdisjoint(region.get("value", region))


def _paint(canvas: Canvas, region: dict[str, Any], exported: Exported, where: str) -> None:
    """Paint a brush region, a polygon or a rectangle; other kinds of regions are refused."""
    value, (height, width) = region.get("value", region), canvas.label.shape
    names: list[str] = next((value[key] for key in value if key.endswith("labels")), [])
    if (region.get("original_width", width), region.get("original_height", height)) != (width, height):
        raise InputError(f"{where}: a region is not of a picture of {width}x{height}, as it was exported")
    if len(names) != 1 or region.get("image_rotation"):
        problem = f"has {len(names)} classes, expected one" if len(names) != 1 else "is of a picture that was turned"
        raise InputError(f"{where}: a region {problem}")
    class_id = exported.class_id(names[0], where)
    if "rle" in value:
        mask = _decode(bytes(value["rle"]), height, width, where)
    elif (corners := _corners(value, np.array([width, height]) / 100)) is not None:
        mask = polygon(corners, canvas.label.shape, where)
    else:
        kind = str(region.get("type", ", ".join(value)))[:40]
        raise InputError(f"{where}: regions of type {kind} are not supported", hint="draw with the brush or polygons")
    canvas.paint(class_id, mask)


def _corners(value: dict[str, Any], percent: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Corners (N, 2) in pixels of a polygon, or a rectangle that is turned about its first corner; None for others."""
    if "points" in value:
        return np.array(value["points"], float) * percent
    if not {"x", "y", "width", "height"} <= value.keys():
        return None
    sides = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [value["width"], value["height"]] * percent
    cos, sin = np.cos(turn := np.deg2rad(value.get("rotation", 0))), np.sin(turn)
    return np.asarray(sides @ [[cos, sin], [-sin, cos]] + np.array([value["x"], value["y"]]) * percent)


def _decode(rle: bytes, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """Mask of a region: opacity of at least half. The stated length is checked, because the library trusts it."""
    with needs_extra("exchange"):
        from label_studio_sdk.converter.brush import decode_rle
    if int.from_bytes(rle[:4]) != 4 * height * width or len(rle) > 8 * height * width + 64:
        raise InputError(f"{where}: the runs of a region are not of {width}x{height} pixels in RGBA")
    return np.asarray(decode_rle(rle).reshape(height, width, 4)[..., 3] > 127)
