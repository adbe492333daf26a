"""Pictures of the report: image, human coarse label, pseudo label, confidence, weight of each scale."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import only_checkpoint
from hmsa_core.io import atomic
from hmsa_core.io.errors import DecodeError, HmsaError, NoSpaceError
from hmsa_core.io.process import die_with_parent
from hmsa_core.io.remote import fetched
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.codes import EDGE_VALUES
from hmsa_core.taxonomy import IGNORE
from pipeline.jobs.support import labelling_teacher, weights_of
from pipeline.report.render import Raw, data_uri, esc, titled
from pipeline.workspace.workspace import Workspace

UInt8 = NDArray[np.uint8]
_WIDTH, _SMALL = 400, 200  # pixels of a picture on the page


@dataclass(frozen=True)
class Strip:
    """One image with its pictures, each as (caption, PNG or JPEG data URI)."""

    name: str
    pictures: list[tuple[str, str]]

    def html(self) -> Raw:
        """The row of pictures as HTML."""
        cells = "".join(
            f"<figure><img src='{uri}' alt='{esc(caption)} of {esc(self.name)}'>"
            f"<figcaption{titled(caption)}>{esc(caption)}</figcaption></figure>"
            for caption, uri in self.pictures
        )
        return Raw(f"<div class='card'><h3>{esc(self.name)}</h3><div class='strip'>{cells}</div></div>")


def strips(ws: Workspace, count: int) -> list[Strip]:
    """Draw every k-th image of the raw store by sorted name, which spreads the images over cities.

    One `predict` job of the checkpoint that labelled the images gives the scale weights.
    """
    index, raw = Index.load(ws.path("data/index/target.parquet")), LabelStore.open(ws.path("labels/raw"))
    known = [s for s in index.samples if s.name in raw]
    step = max(1, len(known) // max(1, count))
    samples = known[step // 2 :: step][:count]
    if not samples:
        return []
    root, palette, final = ws.roots[index.root], index.classes.palette(), LabelStore.open(ws.path("labels/final"))
    checkpoint = only_checkpoint(labelling_teacher(ws))  # other teachers have no scale weights
    weights = _weights(ws, checkpoint, [root / s.image for s in samples]) if checkpoint else None
    drawn = []
    for number, sample in enumerate(samples):
        label, code = raw.read(sample.name)
        pictures = [("image", _uri(read_image(root / sample.image), Image.Resampling.LANCZOS, "JPEG"))]
        labels = {"pseudo label, every pixel": label}
        if sample.coarse:
            labels = {"human, coarse": read_label(root / sample.coarse, index.classes)} | labels
        if sample.name in final:
            labels["training label (merged, thresholded; black = ignored)"] = final.read(sample.name)[0]
        pictures += [(text, _uri(palette[ids], Image.Resampling.NEAREST)) for text, ids in labels.items()]
        confidence = np.rint(EDGE_VALUES[code] * 255).astype(np.uint8)
        pictures.append(("confidence (white = 1)", _uri(confidence, Image.Resampling.BILINEAR)))
        drawings = weights.glob(f"{number}_weight_*x.png") if weights else ()
        for path in sorted(drawings, key=_scale_of):
            weight = _uri(np.asarray(Image.open(path)), Image.Resampling.BILINEAR)
            pictures.append((f"weight of {_scale_of(path):g}x (white = 1)", weight))
        drawn.append(Strip(sample.name, pictures))
    return drawn


def _scale_of(path: Path) -> float:
    return float(path.stem.rsplit("_", 1)[1].removesuffix("x"))


def _weights(ws: Workspace, checkpoint: Path, images: list[Path]) -> Path:
    """Folder with `N_weight_*x.png` of the N-th image, cached by content; two images may share a name."""
    config = ws.params.auto_infer
    weights = weights_of(checkpoint)
    images = [fetched(image) for image in images]
    key = atomic.digest([weights, list(config.scales), config.flip, [atomic.sha256_file(p) for p in images]])[:16]
    folder = ws.path(f"work/report/{key}/by-number")
    done = folder / "done.json"
    if done.exists():
        return folder
    numbered = [folder / f"images/{number}{image.suffix}" for number, image in enumerate(images)]
    for image, link in zip(images, numbered, strict=True):
        atomic.publish_file(image, link)
    command = [sys.executable, "-m", "pipeline.cli.main", "predict", *map(str, numbered)]
    command += ["--checkpoint", str(checkpoint), "--out", str(folder)]
    command += ["--scales", ",".join(f"{s:g}" for s in config.scales)]
    die_with_this = partial(die_with_parent, signal.SIGKILL, parent=os.getpid())
    result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=die_with_this)
    if result.returncode == NoSpaceError.exit_code:
        raise NoSpaceError("no space left on device while drawing the scale weights", hint="free space, run again")
    if result.returncode:
        text = " ".join(result.stderr.strip().splitlines()[-2:])
        raise HmsaError(f"drawing the scale weights failed: {text}")
    atomic.write_json(done, {"images": len(images)})
    return folder


def thumbnails(ws: Workspace, captions: Mapping[str, str], address_of: Callable[[str], str]) -> Raw:
    """Small pictures with their training labels, each a link; ignored pixels are dark.

    A missing or damaged image is left out; the next run of `prepare` reports it.

    Args:
        ws: the workspace.
        captions: {name of an image: its caption}.
        address_of: address of an image.
    """
    final, index = ws.path("labels/final"), ws.path("data/index/target.parquet")
    for path, missing in ((final / "manifest.json", "no training labels were made"), (index, "no images were indexed")):
        if not path.exists():
            return Raw(f"<p class='soft'>{missing}</p>")
    known, store = Index.load(index), LabelStore.open(final)
    samples, palette = {s.name: s for s in known.select(names=list(captions))}, known.classes.palette()
    cells = []
    for name in (name for name in captions if name in samples and name in store):
        try:
            image = read_image(ws.roots[known.root] / samples[name].image)
        except (DecodeError, FileNotFoundError):
            continue
        size = (_SMALL, max(1, round(_SMALL * image.shape[0] / image.shape[1])))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        ids = np.asarray(Image.fromarray(store.read(name)[0]).resize(size, Image.Resampling.NEAREST))
        mixed = 0.45 * small + np.where((ids != IGNORE)[..., None], 0.55 * palette[ids], 0.0)
        picture = _uri(mixed.astype(np.uint8), Image.Resampling.BOX, "JPEG", _SMALL)
        cells.append(f"<a href='{esc(address_of(name))}' title='{esc(name)}'><img src='{picture}' alt='{esc(name)}'>")
        cells.append(f"{esc(captions[name])}</a>")
    return Raw(f"<div class='thumbs'>{''.join(cells)}</div>" if cells else "<p class='soft'>nothing was labelled</p>")


def _uri(picture: UInt8, resample: Image.Resampling, kind: str = "PNG", width: int = _WIDTH) -> str:
    """Picture of this width as a data URI; enlarging does not smooth, so that single pixels stay visible."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    height = max(1, round(image.height * width / image.width))
    image = image.resize((width, height), Image.Resampling.NEAREST if image.width < width else resample)
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return data_uri(buffer.getvalue(), f"image/{kind.lower()}")
