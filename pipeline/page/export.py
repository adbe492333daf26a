"""The files of the page, and its export: scripts and pictures that open from a folder, without a server or network."""

from __future__ import annotations

import base64
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmsa_core.io.atomic import write_bytes, write_text
from hmsa_core.io.errors import ConfigError, StoreError
from hmsa_core.io.trees import new_tree
from hmsa_core.labels.store.format import refuse_in_store
from pipeline.review.session import Session
from pipeline.review.stats import Cuts, ImageQuery, Sort, image_rows, parse_sort

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
MEDIA_TYPES = {f".{end}": f"text/{kind}; charset=utf-8" for end, kind in (("js", "javascript"), ("css", "css"))}
MEDIA_TYPES |= {".html": "text/html; charset=utf-8", ".svg": "image/svg+xml"}

_IMPORT = re.compile(r'^import (?:\{([^}]*)\} from )?"\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)
_MARK = "export.json"
_OURS = {"data", "pictures", "thumbs", "static", "index.html", _MARK}


def static_sources() -> dict[str, str]:
    """File name -> text of all files of the page, in `static/`."""
    files = sorted((resources.files(__package__) / "static").iterdir(), key=lambda file: file.name)
    return {file.name: file.read_text("utf-8") for file in files if Path(file.name).suffix in MEDIA_TYPES}


def bundle_modules(sources: dict[str, str], entry: str = "app") -> str:
    """Join the page's modules into one classic script, because a browser loads no module from a folder.

    Each module becomes a function that returns its exports; imports become constants. That works for the plain
    forms that the page uses: named imports and exports, none of them reassigned, no cycles.
    """
    done: list[str] = []
    parts: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise StoreError(f"static/{name}.js imports itself through {' -> '.join(above)}")
        if name in done:
            return
        text = sources[f"{name}.js"]
        for _, other in _IMPORT.findall(text):
            visit(other, (*above, name))
        body = _IMPORT.sub(lambda m: f"const {{{m[1]}}} = ${m[2]};\n" if m[1] else "", text)
        names = ", ".join(_EXPORT.findall(text))
        body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
        parts.append(f"const ${name} = (() => {{\n{body}\nreturn {{ {names} }};\n}})();\n")
        done.append(name)

    visit(entry, ())
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _check_target(target: Path) -> None:
    """Refuse a folder in which something of the user's would be lost, or that cannot be changed for another."""
    if Path.cwd().is_relative_to(target.resolve()):
        raise ConfigError(
            f"{target}: an export takes the place of the whole folder, and this command runs in it",
            hint="choose a folder below, for example --export page",
        )
    refuse_in_store(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{target}: is no folder", hint="choose a new folder")
    there = {path.name for path in target.iterdir()}
    if there and _MARK not in there:
        raise ConfigError(f"{target}: not empty and not an earlier export", hint="choose a new folder")
    if foreign := sorted(there - _OURS):
        raise ConfigError(
            f"{target}: holds more than an earlier export: {', '.join(foreign[:3])}",
            hint="move that away, or choose a new folder",
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _picture(session: Session, name: str) -> bytes:
    """The photograph as JPEG: it is there to be looked at, the labels are exact."""
    data, media = session.view.pictures.picture(name)
    if media == "image/jpeg":
        return data
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is not None:
        done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        if done:
            return bytes(jpeg.tobytes())
    raise StoreError(f"image {name!r}: its photograph could not be turned into a JPEG")


def _histogram(session: Session, name: str) -> list[list[int]]:
    label, code = session.view.read(name)
    counts = np.bincount((label.astype(np.int64) << 8 | code).reshape(-1), minlength=65536)
    hit = np.flatnonzero(counts[: session.view.classes.num_classes * 256])
    return [[int(i >> 8), int(i & 255), int(counts[i])] for i in hit]


def _export_image(session: Session, row: dict[str, Any], number: int, target: Path) -> dict[str, Any]:
    """Write the files of one image; returns what the page's script knows of it."""
    name, view = row["name"], session.view
    details = session.image_details(name)
    planes = {"label": _text(view.plane_png(name, "label")), "confidence": _text(view.plane_png(name, "confidence"))}
    if details["human"]:
        planes["human"] = _text(view.plane_png(name, "human"))
    stem = f"{number:05d}"
    files = {"data": f"data/{stem}.js", "picture": f"pictures/{stem}.jpg", "thumb": f"thumbs/{stem}.jpg"}
    write_text(target / files["data"], f"window.autolabelPlanes = {json.dumps(planes)};\n")
    if details["picture"]:
        write_bytes(target / files["picture"], _picture(session, name))
        write_bytes(target / files["thumb"], view.pictures.thumb(name))
    return {
        **files,
        "name": name,
        "city": row["city"],
        "pixels": details["height"] * details["width"],
        "details": details,
        "mini": _text(view.mini_png(name)),
        "histogram": _histogram(session, name),
        "row": {k: row[k] for k in ("name", "city", "review", "conflict")} | {"picture": details["picture"]},
    }


def export_page(session: Session, target: Path, *, limit: int, sort: str, threshold: str | None) -> int:
    """Write the page with `limit` images, the first ones of an order; returns how many there are.

    Figures for the whole store are those of the whole store. Sorting and filtering work among the exported
    images; review, audit and saving need the server. An earlier export is replaced in one step; after a failure it
    is there as it was.

    Raises:
        ConfigError: `target` holds something else.
    """
    if not 1 <= limit <= 1000:
        raise ConfigError(f"--limit {limit}: expected 1 to 1000 images")
    _check_target(target)
    cuts, order = session.cuts(threshold), parse_sort(sort)
    mark = json.dumps({"format": "autolabel-page", "store": session.view.digest}) + "\n"
    if target.is_dir() and not (target / _MARK).exists():
        # A mount point is filled file by file: what a failure leaves in it must be known as ours.
        write_text(target / _MARK, mark)
    with new_tree(target, last=("index.html",)) as folder:
        count = _write_export(session, folder, limit, order, cuts)
        write_text(folder / _MARK, mark)
    return count


def _write_export(session: Session, target: Path, limit: int, order: Sort, cuts: Cuts) -> int:
    """Write everything but the mark into an empty folder; returns the number of images."""
    _, rows = image_rows(session.view, cuts, ImageQuery(order), limit=limit, statuses=session.review.statuses())
    conflict = session.view.conflict(cuts.codes).sum(axis=1)
    images: list[dict[str, Any]] = []
    for row in rows:
        if session.view.is_served(row["name"]):
            row["conflict"] = int(conflict[session.view.position(row["name"])])
            images.append(_export_image(session, row, len(images), target))
    store = session.describe() | {"exported": len(images), "start": "policy" if cuts.policy else int(cuts.codes[0])}
    marks = [session.review.shown(mark) for mark in session.review.marks()]
    bundle = {"store": store, "images": images, "reviews": marks}
    write_text(target / "static" / "data.js", f"window.autolabelExport = {json.dumps(bundle)};\n")
    _write_page(target)
    return len(images)


def _write_page(target: Path) -> None:
    sources = static_sources()
    page = sources.pop("index.html").replace("{{token}}", "").replace("{{labels}}", "")
    policy = CONTENT_POLICY.replace("; frame-ancestors 'none'", "")  # only a server can send that one
    header = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.replace("<meta charset", f"{header}\n<meta charset", 1)
    page = page.replace(
        '<script type="module" src="static/app.js"></script>',
        '<script defer src="static/data.js"></script>\n<script defer src="static/page.js"></script>',
    )
    write_text(target / "static" / "page.js", bundle_modules(sources))
    for name, text in sources.items():
        if not name.endswith(".js"):
            write_text(target / "static" / name, text)
    write_text(target / "index.html", page)
