"""Score a checkpoint on a folder of images and a folder of labels with the same stems.

Labels hold the ids of the class file (255 = ignored). Images of any size; a label of another size than its
image is scored at its own size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.errors import ConfigError, InputError
from pipeline.cli.inference_options import Options, add_options, pin_threads, read_options

if TYPE_CHECKING:
    from hmsa_core.taxonomy import ClassTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel evaluate`."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of label maps, same stems")
    parser.add_argument(
        "--classes", required=True, metavar="FILE",
        help="class file such as CamVid's classes.json; or cityscapes, mapillary_v1.2, mapillary_v2.0",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=("model", "single", "average", "max"), default="model",
        help="how scales are fused (default: as the model was trained)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON: mean_iou, iou by class name, images, ...")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score all pairs and print the result."""
    pairs = _pairs(args.images, args.labels)
    options = read_options(args, threads=pin_threads(args))
    from hmsa_core.data.folder import load_classes

    classes = load_classes(Path(), args.classes)
    _check_classes(classes, options, args.classes)
    result = _score(pairs, classes, options, args.mode)
    if args.json:
        sys.stdout.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
    else:
        sys.stdout.write(_text(result))
    return 0


def _pairs(images: Path, labels: Path) -> list[tuple[str, Path, Path]]:
    """(stem, image, label) sorted by stem; a file without its partner is an error that names the first."""
    from hmsa_core.data.layout import pair

    by_image, by_label = _by_stem(images, "images"), _by_stem(labels, "labels")
    both, no_label, no_image = pair({k: str(v) for k, v in by_image.items()}, {k: str(v) for k, v in by_label.items()})
    for stems, have, lack, files in (
        (no_label, "images", "label", by_image), (no_image, "labels", "image", by_label),
    ):  # fmt: skip
        if stems:
            first = files[stems[0]]
            raise InputError(
                f"{len(stems)} of {len(files)} {have} have no {lack} of the same stem, the first is {first}",
                hint="images and labels are paired by file name without its ending",
            )
    return [(stem, by_image[stem], by_label[stem]) for stem in both]


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    from hmsa_core.data.layout import list_files

    if not folder.is_dir():
        raise InputError(f"--{what} {folder}: no such folder")
    found: dict[str, Path] = {}
    for name in list_files(folder):
        path = folder / name
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {name} have the same stem")
        found[path.stem] = path
    if not found:
        raise InputError(f"--{what} {folder}: no JPEG, PNG, WebP or TIFF file in this folder")
    return found


def _check_classes(classes: ClassTable, options: Options, given: str) -> None:
    count = options.meta["num_classes"]
    if classes.num_classes != count:
        raise ConfigError(
            f"{given} has {classes.num_classes} classes, {options.checkpoint} was trained for {count}",
            hint="give the class file of the data set that the checkpoint was trained for",
        )
    table = options.meta.get("class_table")
    own = [row["name"].lower() for row in table["classes"]] if table else []
    asked = [name.lower() for name in classes.classes]
    if own and own != asked:
        first = next(i for i, (a, b) in enumerate(zip(own, asked, strict=True)) if a != b)
        message = f"{given}: class {first} is {asked[first]!r}, in {options.checkpoint} it is {own[first]!r}"
        if sorted(own) == sorted(asked):
            raise ConfigError(message, hint="give the classes in the checkpoint's order")
        sys.stderr.write(f"note: {message}; classes are compared by their number\n")


def _score(
    pairs: list[tuple[str, Path, Path]], classes: ClassTable, options: Options, mode: str
) -> dict[str, Any]:
    from hmsa_core.engine.evaluate import score_files
    from hmsa_core.engine.progress import Progress
    from hmsa_core.engine.spec import EvaluationSetting

    setting = EvaluationSetting.model_validate(
        {"name": "evaluate", "scales": options.scales, "flip": options.flip, "mode": mode}
    )
    with Progress(len(pairs), what="evaluate") as progress:
        summary = score_files(options.checkpoint, options.runtime, pairs, classes, setting, progress.update)
    keys = ("mean_iou", "iou", "images", "pixel_accuracy", "scales", "flip", "mode")
    return {**{key: summary[key] for key in keys}, "checkpoint": options.meta["weights_sha256"],
            "precision": summary["precision"]}  # fmt: skip


def _text(result: dict[str, Any]) -> str:
    def shown(value: float | None) -> str:
        return "    -" if value is None else f"{100 * value:5.1f}"

    width = max(len(name) for name in result["iou"])
    lines = [f"{name:<{width}}  {shown(value)}" for name, value in result["iou"].items()]
    lines.append(f"{'mean IoU':<{width}}  {shown(result['mean_iou'])}   ({result['images']} images)")
    return "\n".join(lines) + "\n"
