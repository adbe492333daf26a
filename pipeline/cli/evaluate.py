"""Score a checkpoint on a folder of images and a folder of labels with the same stems.

Labels hold the ids of the class file (255 = ignored). Images of any size; a label of another size than its
image is scored at its own size.

autolabel evaluate --checkpoint models/student --images DIR --labels DIR --classes classes.json --json --details
autolabel evaluate --checkpoint models/pretrain --images DIR --labels DIR --classes mapillary_v1.2 --long-edge 2177
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
    from hmsa_core.engine.spec import EvaluationSetting
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
    parser.add_argument("--long-edge", type=_pixels, metavar="PIXELS", help="bring images to it (Mapillary: 2177)")
    parser.add_argument(
        "--score-at", choices=("original", "resized"), default="original",
        help="original: scores are enlarged to the label's size; resized: labels too, as the released code scores",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON: mean_iou, iou by class name, images, ...")
    parser.add_argument(
        "--details", action="store_true",
        help="also boundary IoU, IoU near boundaries, reliability, weights of the scales, cities, confusions (JSON)",
    )  # fmt: skip
    add_options(parser)


def _pixels(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of pixels")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Score all pairs and print the result."""
    pairs = _pairs(args.images, args.labels)
    options = read_options(args, threads=pin_threads(args))
    from hmsa_core.data.folder import load_classes

    classes = load_classes(Path(), args.classes)
    _check_classes(classes, options, args.classes)
    result = _score(pairs, classes, options, _setting(args, options), details=args.details)
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


def _setting(args: argparse.Namespace, options: Options) -> EvaluationSetting:
    from hmsa_core.engine.spec import EvaluationSetting

    return EvaluationSetting.model_validate(
        {"name": "evaluate", "scales": options.scales, "flip": options.flip, "mode": args.mode,
         "long_edge": args.long_edge, "score_at": args.score_at}
    )  # fmt: skip


def _score(
    pairs: list[tuple[str, Path, Path]], classes: ClassTable, options: Options, setting: EvaluationSetting, *,
    details: bool,
) -> dict[str, Any]:  # fmt: skip
    import numpy as np

    from hmsa_core.data.decode import read_image, read_label
    from hmsa_core.engine.context import JobContext
    from hmsa_core.engine.distributed import start_ranks
    from hmsa_core.engine.evaluate import read_ahead, score
    from hmsa_core.engine.evaluate_scores import Labelled, Scorer, summarise
    from hmsa_core.engine.fast_tiles import Tiler
    from hmsa_core.engine.infer import load_predictor
    from hmsa_core.engine.progress import Progress
    from hmsa_core.labels.exchange.files import city_of
    from pipeline.quality import by_category, by_city

    context = JobContext(options.checkpoint, start_ranks(options.runtime, {}), options.runtime)
    predictor = load_predictor(options.checkpoint, context)
    scorer = Scorer(Tiler(predictor), [setting], classes.num_classes, details=details)

    def read(source: tuple[str, Path, Path]) -> Labelled:
        name, image, label = source
        return Labelled(name, read_image(image), read_label(label, classes), city=city_of(name))

    with Progress(len(pairs), what="evaluate") as progress:
        score(scorer, read_ahead(pairs, read), context.check_stop, progress.update)
    scores = scorer.scores[setting.name]
    summary = summarise(scores, setting, classes)
    keys = ("mean_iou", "iou", "images", "pixel_accuracy", "scales", "flip", "mode", "long_edge", "score_at")
    counts = np.sum(scores.confusions, axis=0)
    result = {
        **{key: summary[key] for key in keys}, "category_iou": by_category(counts, classes),
        "checkpoint": options.meta["weights_sha256"], "precision": predictor.precision,
    }  # fmt: skip
    if not details:
        return result
    diagram = scores.reliability.diagram()
    return {
        **result,
        **{key: summary[key] for key in ("boundary", "band", "ece", "weights") if key in summary},
        "reliability": {k: [_number(v) for v in diagram[k].tolist()] for k in ("confidence", "accuracy", "pixels")},
        "cities": by_city(np.stack(scores.confusions), scores.cities), "confusion": counts.tolist(),
    }  # fmt: skip


def _number(value: float) -> float | None:
    return None if value != value else value  # a bin without pixels has no mean


def _text(result: dict[str, Any]) -> str:
    def shown(value: float | None) -> str:
        return "    -" if value is None else f"{100 * value:5.1f}"

    width = max(len(name) for name in result["iou"])
    lines = [f"{name:<{width}}  {shown(value)}" for name, value in result["iou"].items()]
    lines.append(f"{'mean IoU':<{width}}  {shown(result['mean_iou'])}   ({result['images']} images)")
    if "boundary" in result:
        lines.append(f"{'boundary':<{width}}  {shown(result['boundary']['mean_iou'])}   (mean boundary IoU)")
        lines.append(f"{'ECE':<{width}}  {shown(result['ece'])}   (calibration error)")
    return "\n".join(lines) + "\n"
