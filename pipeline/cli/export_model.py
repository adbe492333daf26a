"""Write a checkpoint as one graph for other runtimes: OUT.onnx, or OUT.pt2 (torch.export).

The graph takes raw RGB bytes (uint8, N x 3 x H x W) of any batch and size and normalises them itself. It fuses all
scales and gives probabilities, or labels with --argmax. For flip, give the mirrored picture as a second one. At the end
the graph labels real images (8 drawn pictures where none are known). It is written where it gives at least 99.9 % of
the pixels our own label. An int8 graph (--int8) is compared, too, and written whatever it gives.

autolabel export-model models/student student.onnx --scales 1 --images DIR
autolabel export-model models/student student.onnx --scales 0.5,1,2 --argmax --half
autolabel export-model models/student student.onnx --scales 1 --int8 DIR --images DIR --labels DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hmsa_core.io.errors import ConfigError, HmsaError, InputError
from pipeline.cli.inference_options import pin_threads, positive, scale_list, tell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hmsa_core.inference.teachers.run_options import RunOptions

MIN_AGREEMENT = 0.999  # share of pixels with the checkpoint's label, below which nothing is written
_MOST = 40  # most images to compare on, evenly spaced
_SUFFIXES = (".onnx", ".pt2")


class _Picture(NamedTuple):
    image: NDArray[np.uint8]  # H x W x 3
    label: NDArray[np.uint8] | None = None  # H x W trainIds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel export-model`."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint folder, a file in it, or a folder's address")
    add("out", type=Path, metavar="OUT", help="file to write: .onnx or .pt2")
    add("--scales", type=scale_list, metavar="S,S,...", help="e.g. 1 (default: the checkpoint's)")
    add("--argmax", action="store_true", help="labels (uint8 trainIds) instead of probabilities")
    add("--half", action="store_true", help="the network computes in fp16, fusion and softmax in fp32")
    add("--int8", type=Path, metavar="DIR", help="int8 convolutions, calibrated on these images")
    text = "images to compare on (default: --int8's, the workspace's calibration images, or drawn ones)"
    add("--images", type=Path, metavar="DIR", help=text)
    add("--labels", type=Path, metavar="DIR", help="their labels, in the checkpoint's ids: prints mIoU")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Trace and convert the model, compare the labels, write the file."""
    _check(args)
    pin_threads(args)
    from hmsa_core.inference.teachers.run_options import run_options

    options = run_options(args.checkpoint, args.scales)
    from hmsa_core import models
    from hmsa_core.io.atomic import write_bytes
    from hmsa_core.models import export

    if args.out.suffix == ".onnx":
        export.check_onnx()
    pictures, words = _pictures(args, options.class_table)
    calibration = _images_of(args.int8) if args.int8 else None
    model, scales, suffix = models.load(options.checkpoint), options.passes.scales, args.out.suffix
    least, found = export.least_side(model, scales), min(min(batch.shape[2:]) for batch in _batches(pictures))
    if suffix == ".pt2" and found < least:
        raise InputError(
            f"{args.out}: takes sides of at least {least} pixels at these scales, an image to compare on has {found}",
            hint="name larger ones: --images DIR",
        )
    program = export.trace(model, scales, argmax=args.argmax, half=args.half)
    about = export.metadata(model, scales, argmax=args.argmax, precision="fp16" if args.half else "fp32")
    data = export.to_onnx(program, about, argmax=args.argmax) if suffix == ".onnx" else export.to_pt2(program, about)
    expected = [export.reference_labels(model, batch, scales) for batch in _batches(pictures)]
    share = _compare(export.open_graph(data, suffix, where=str(args.out)), pictures, expected, options, words)
    if share < MIN_AGREEMENT:
        raise HmsaError(
            f"{args.out}: {100 * share:.3f} % of the pixels get our own label, expected {100 * MIN_AGREEMENT:g} %; "
            "nothing was written",
            hint="leave out --half; scores of an untrained checkpoint are nearly equal, and rounding decides",
        )
    if calibration is not None:
        data = export.quantise(data, calibration)
        _compare(export.open_graph(data, suffix, where=str(args.out)), pictures, expected, options, f"int8, {words}")
    digest = write_bytes(args.out, data)
    sys.stdout.write(f"{args.out}: {len(data) / 1e6:.1f} MB, SHA-256 {digest[:16]}...\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.out.suffix not in _SUFFIXES:
        raise ConfigError(f"{args.out}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    if args.out.suffix == ".pt2" and args.int8:
        raise ConfigError(f"--int8 is for .onnx files, found {args.out}")
    if args.int8 and args.half:
        raise ConfigError("--int8 and --half exclude each other")
    if args.labels and not args.images:
        raise ConfigError("--labels needs --images")


def _pictures(args: argparse.Namespace, classes: dict[str, Any] | None) -> tuple[list[_Picture], str]:
    """Images to compare on, and words that say which images they are."""
    if args.labels:
        found = _labelled(args.images, args.labels, classes)
        return found, f"{len(found)} images of {args.images}"
    if folder := args.images or args.int8:
        images = _images_of(folder)
        words = f"{len(images)} images of {folder}"
    elif images := _workspace_images():
        words = f"{len(images)} calibration images of the workspace"
    else:
        images, words = _drawn(), "8 drawn pictures (name real ones: --images DIR)"
    return [_Picture(image) for image in images], words


def _images_of(folder: Path) -> list[NDArray[np.uint8]]:
    from hmsa_core.data.decode import read_image
    from hmsa_core.data.walk import walk

    files = list(walk(folder).paths()) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder}: no folder with images (JPEG, PNG, WebP, TIFF)")
    return [read_image(path) for path in _spread(files)]


def _labelled(images: Path, labels: Path, classes: dict[str, Any] | None) -> list[_Picture]:
    from hmsa_core.data.decode import read_image
    from hmsa_core.inference.evaluation.labelled_files import label_reader, pairs_of
    from hmsa_core.taxonomy import ClassTable

    if not classes:
        raise InputError("--labels: the checkpoint has no class table, ids of labels are not known")
    read, found = label_reader(ClassTable.from_json(classes)), []
    for pair in _spread(pairs_of(images, labels)[0]):
        image, label = read_image(pair.image), read(pair.label)
        if label.shape != image.shape[:2]:
            raise InputError(f"{pair.label}: its size {label.shape} is not that of its image")
        found.append(_Picture(image, label))
    return found


def _workspace_images() -> list[NDArray[np.uint8]]:
    """Calibration images of the workspace that the current folder lies in; none outside of a workspace."""
    from pipeline.workspace.workspace import Workspace

    try:
        ws = Workspace.find()
    except ConfigError:
        return []
    if not (index := ws.path("data/index/target.parquet")).exists():
        return []
    from hmsa_core.data.decode import read_image
    from hmsa_core.data.index import Index

    samples = Index.load(index).select(roles=("calibrate",))
    return [read_image(ws.roots["target"] / sample.image) for sample in _spread(samples)]


def _drawn() -> list[NDArray[np.uint8]]:
    """Smooth pictures of random colours, always the same; no side is a multiple of a stride."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (11, 17, 3), np.uint8) for _ in range(8)]
    return [np.asarray(cv2.resize(one, (397, 270), interpolation=cv2.INTER_CUBIC), np.uint8) for one in small]


def _spread(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:: max(1, len(rows) // _MOST)][:_MOST]


def _batches(pictures: Sequence[_Picture]) -> list[NDArray[np.uint8]]:
    """Each picture alone; then the first with its mirror image, both cropped to no multiple of a stride."""
    from hmsa_core.models.export import as_batch

    first = pictures[0].image[:-5, :-3] if min(pictures[0].image.shape[:2]) > 256 else pictures[0].image
    return [*(as_batch(picture.image) for picture in pictures), as_batch(first, first[:, ::-1])]


def _compare(
    graph: Any, pictures: Sequence[_Picture], ours: Sequence[NDArray[np.uint8]], options: RunOptions, setting: str
) -> float:
    """Print agreement, and mIoU where labels are known; return the share of pixels whose label equals `ours`."""
    import numpy as np

    from hmsa_core.metrics import confusion_counts, iou_of, mean_iou_of
    from hmsa_core.models.export import labels_of

    classes = options.num_classes
    counts = np.zeros((2, classes, classes + 1), np.int64)
    equal = pixels = 0
    for i, (batch, expected) in enumerate(zip(_batches(pictures), ours, strict=True)):
        found = labels_of(graph(batch))
        equal, pixels = equal + int((found == expected).sum()), pixels + expected.size
        label = pictures[i].label if i < len(pictures) else None
        if label is not None:
            counts += np.stack([confusion_counts(each[0], label, classes) for each in (found, expected)])
    line = f"{100 * equal / pixels:.3f} % of {pixels:,} pixels have our own label ({setting})"
    if counts.any():
        line += "; mIoU {:.2f}, ours {:.2f}".format(*(100 * mean_iou_of(iou_of(each)) for each in counts))
    tell(line)
    return equal / pixels
