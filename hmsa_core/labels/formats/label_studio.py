"""Label Studio: tasks with predictions, one brush region (RLE) for each class of an image.

Pictures are local files: start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=OUT. What comes back is its export "JSON".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import open_atomic, write_bytes, write_text
from hmsa_core.io.errors import InputError, needs_extra
from hmsa_core.labels.formats._item import About, Item
from hmsa_core.labels.formats._returned import Canvas, Exported, Returned, load_json

_FROM, _TO = "label", "image"


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
    """Annotations of an export: each by its person, with its date; cancelled and empty ones are left out."""
    tasks = load_json(path)
    if not isinstance(tasks, list):
        raise InputError(f"{path}: expected a list of tasks", hint='export as "JSON"')
    for task in tasks:
        name = exported.name_of(task["data"]["file"], path)
        for annotation in task["annotations"]:
            regions = [r for r in annotation["result"] if _is_region(r, f"{path}: {name}")]
            if regions and not annotation.get("was_cancelled"):
                canvas = Canvas(exported.label(name), f"{path}: {name}")
                for region in regions:
                    _paint(canvas, region, exported, f"{path}: {name}")
                by, when = annotation.get("completed_by"), annotation.get("updated_at", "")
                who = by.get("email", "") if isinstance(by, dict) else "" if by is None else f"user {by}"
                yield Returned(name, canvas.label, str(who)[:200], str(when)[:40])


def _is_region(region: dict[str, Any], where: str) -> bool:
    kind = str(region["type"])
    if kind.endswith("labels") and kind != "brushlabels":
        raise InputError(f"{where}: regions of type {kind[:40]} are not supported", hint="correct with the brush")
    return kind == "brushlabels"


def _paint(canvas: Canvas, region: dict[str, Any], exported: Exported, where: str) -> None:
    names, (height, width) = region["value"]["brushlabels"], canvas.label.shape
    if (region["original_width"], region["original_height"]) != (width, height):
        raise InputError(f"{where}: a region is not of a picture of {width}x{height}, as it was exported")
    if len(names) != 1:
        raise InputError(f"{where}: a region has {len(names)} classes, expected one")
    mask = _decode(bytes(region["value"]["rle"]), height, width, where)
    canvas.paint(exported.class_id(names[0], where), mask)


def _decode(rle: bytes, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """Mask of a region: opacity of at least half. The stated length is checked, because the library trusts it."""
    with needs_extra("exchange"):
        from label_studio_sdk.converter.brush import decode_rle
    if int.from_bytes(rle[:4]) != 4 * height * width or len(rle) > 8 * height * width + 64:
        raise InputError(f"{where}: the runs of a region are not of {width}x{height} pixels in RGBA")
    return np.asarray(decode_rle(rle).reshape(height, width, 4)[..., 3] > 127)
