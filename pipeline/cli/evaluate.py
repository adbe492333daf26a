"""Score a checkpoint on a folder of images and a folder of labels with the same stems.

Labels hold the ids of the class file, or, with --ids train, trainIds (255 = ignored), or, with --ids colours, the
colours of the class file. Images of any size; a label of another size than its image is scored at its own size.
Folders may hold sub-folders; Cityscapes' names (leftImg8bit/val, gtFine/val) and CamVid's (*_L.png) are known.

autolabel evaluate --checkpoint models/student --images DIR --labels DIR --classes classes.json --json --details
autolabel evaluate --checkpoint models/student --baseline models/control --images DIR --labels DIR --classes FILE
autolabel evaluate --checkpoint models/pretrain --images DIR --labels DIR --classes mapillary_v1.2 --long-edge 2177
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.io.errors import ConfigError, InputError
from pipeline.cli.inference_options import Options, add_options, pin_threads, read_options

if TYPE_CHECKING:
    from hmsa_core.spec import EvaluationSetting
    from hmsa_core.taxonomy import ClassTable
    from pipeline.scored_files import LabelledFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel evaluate`."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of label maps, same stems")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="FILE",
        help="class file such as CamVid's classes.json; or cityscapes, mapillary_v1.2, mapillary_v2.0",
    )
    parser.add_argument(
        "--ids",
        choices=("auto", "file", "train", "colours"),
        default="auto",
        help="what labels hold: the class file's ids, trainIds (255 = ignored) or colours (black = ignored); auto: "
        "ids, asks if they could be trainIds",
    )
    parser.add_argument(
        "--skip-unlabelled", action="store_true", help="leave out images without a label; they are counted"
    )
    parser.add_argument(
        "--mode",
        choices=("model", "single", "average", "max"),
        default="model",
        help="how scales are fused (default: as the model was trained)",
    )
    parser.add_argument("--long-edge", type=_count, metavar="PIXELS", help="bring images to it (Mapillary: 2177)")
    parser.add_argument(
        "--score-at",
        choices=("original", "resized"),
        default="original",
        help="original: scores are enlarged to the label's size; resized: labels too, as the released code scores",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: mean_iou, iou by class name, images, ...")
    parser.add_argument(
        "--details",
        action="store_true",
        help="also boundary IoU, IoU near boundaries, reliability, weights of the scales, cities, confusions (JSON)",
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="--details, and as pictures there: confusions, reliability, IoU"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="F", help="a second checkpoint: the difference is printed with its interval"
    )
    parser.add_argument(
        "--block-length",
        type=_count,
        default=3,
        metavar="N",
        help="neighbours by number that intervals draw together, for pictures of one drive are alike (default: 3)",
    )
    add_options(parser)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Score all pairs and print the result."""
    options = read_options(args, threads=pin_threads(args))
    baseline = _baseline(args, options)
    from hmsa_core.data.layouts import load_classes
    from pipeline.provenance import describe_run
    from pipeline.scored_files import blocks_of, check_labels, label_reader
    from pipeline.scoring import ANSWER, difference, one_sided, open_checkpoint, score_checkpoint, write_plots

    # Before the night's work: a folder that cannot be written, and the sources that are loaded now.
    if args.plots is not None:
        args.plots.mkdir(parents=True, exist_ok=True)
    made = {"command": args.command_line, **describe_run(("hmsa_core", "pipeline"))} if args.json else {}
    files = _pairs(args)
    given = load_classes(Path(), args.classes)
    if args.ids == "train":
        given = given.of_train_ids()
    if args.ids == "colours" and not Path(args.classes).is_file():
        raise ConfigError(f"--ids colours is for class files; label maps of {args.classes} hold ids")
    classes = _as_trained(given, options, args, files)
    if baseline is not None:
        _check_baseline(classes, options, baseline, args)
    reader = label_reader(classes, colours=args.ids == "colours")
    _tell(check_labels(files, given, reader, args.ids))
    blocks = blocks_of([file.name for file in files], args.block_length)
    _tell_blocks(blocks, args.block_length)
    contenders = [open_checkpoint(one, _setting(args, one)) for one in filter(None, (options, baseline))]
    scored = [
        score_checkpoint(contender, files, blocks, classes, read_label=reader, details=bool(args.details or args.plots))
        for contender in contenders
    ]
    for contender, found in zip(contenders, scored, strict=True):
        _tell_learned(found.figures["learned"], contender.options, len(files))
    _tell(one_sided(scored, classes))
    result = scored[0].figures
    if baseline is not None:
        result = {**result, "baseline": scored[1].figures, "difference": difference(scored[0], scored[1], classes)}
    if args.json:
        result = {"format": ANSWER, "version": 1, **result, "made": made}
        sys.stdout.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
    else:
        sys.stdout.write(_text(result))
    if args.plots is not None:
        sys.stdout.flush()
        write_plots(args.plots, dict(zip(("model", "baseline"), scored, strict=False)), classes)
    return 0


def _pairs(args: argparse.Namespace) -> list[LabelledFile]:
    from pipeline.scored_files import pairs_of

    files, unlabelled = pairs_of(args.images, args.labels, train_ids=args.ids == "train")
    if unlabelled:
        count = len(files) + len(unlabelled)
        told = f"{len(unlabelled)} of {count} images have no label of the same stem, the first is {unlabelled[0]}"
        if not args.skip_unlabelled:
            raise InputError(
                told,
                hint="images and labels are paired by file name without its ending; --skip-unlabelled leaves them out",
            )
        _tell([f"{told}: left out"])
    return files


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _baseline(args: argparse.Namespace, options: Options) -> Options | None:
    if args.baseline is None:
        return None
    other = argparse.Namespace(**{**vars(args), "checkpoint": args.baseline})
    return read_options(other, threads=options.runtime.threads)


def _tell_blocks(blocks: list[str], length: int) -> None:
    count, sequences = len(set(blocks)), len({block.rpartition("/")[0] for block in blocks})
    if count == 1:
        sys.stderr.write("note: all images are neighbours, one block: no interval; --block-length 1 draws each alone\n")
    elif count == len(blocks) and length > 1:
        sys.stderr.write(
            "note: no two names look like neighbours of a sequence, each image is drawn alone: intervals are too "
            "narrow where some show the same place\n"
        )
    elif sequences == 1:
        sys.stderr.write(
            f"note: {count} blocks of {length} neighbours, by their names all of one sequence: if that is one drive, "
            "the interval says nothing of other places\n"
        )


def _tell_learned(learned: dict[str, Any], options: Options, images: int) -> None:
    if learned["images"]:
        sys.stderr.write(
            f"warning: {options.checkpoint} has learned from {learned['images']} of these {images} images "
            f"({learned['first']}): its figures are not those of unseen images\n"
        )
    for gap in learned["unknown"]:
        sys.stderr.write(f"note: {options.checkpoint}: what it learned from is not known in full: {gap}\n")


def _as_trained(
    classes: ClassTable, options: Options, args: argparse.Namespace, files: Sequence[LabelledFile]
) -> ClassTable:
    """The classes in the checkpoint's order; those that have other names there are taken by their number."""
    from hmsa_core.data.decode import holds_train_ids

    own, asked = _names_of(options, classes, args.classes), [name.lower() for name in classes.classes]
    if own == asked:
        return classes
    in_their_order = args.ids == "train" or any(holds_train_ids(file.label) for file in files)
    if sorted(own) == sorted(asked) and len(set(own)) == len(own) and not in_their_order:
        from pipeline.scored_files import in_order_of

        _tell([f"{args.classes}: its classes are taken by name, {options.checkpoint} has another order"])
        return in_order_of(classes, own)
    _tell_other_names(own, asked, options, args.classes)
    return classes


def _check_baseline(classes: ClassTable, options: Options, baseline: Options, args: argparse.Namespace) -> None:
    """The counts of both go by the first one's order."""
    own, asked = _names_of(baseline, classes, args.classes), [name.lower() for name in classes.classes]
    if own != asked:
        _tell_other_names(own, asked, baseline, str(options.checkpoint))


def _names_of(options: Options, classes: ClassTable, given: str) -> list[str]:
    """A checkpoint's class names in lower case; those that were given where it has none."""
    count = options.meta["num_classes"]
    if classes.num_classes != count:
        raise ConfigError(
            f"{given} has {classes.num_classes} classes, {options.checkpoint} was trained for {count}",
            hint="give the class file of the data set that the checkpoint was trained for",
        )
    table = options.meta.get("class_table")
    return [row["name"].lower() for row in table["classes"]] if table else [name.lower() for name in classes.classes]


def _tell_other_names(own: Sequence[str], asked: Sequence[str], options: Options, given: str) -> None:
    """Some names differ and no other: by number. A name with another number: neither by name nor by number."""
    first = next(i for i, (a, b) in enumerate(zip(own, asked, strict=True)) if a != b)
    message = f"{given}: class {first} is {asked[first]!r}, in {options.checkpoint} it is {own[first]!r}"
    moved = next((name for i, name in enumerate(asked) if name in own and own[i] != name), None)
    if moved is not None:
        raise ConfigError(
            f"{message}, and {moved!r} has another number: they cannot be compared by number",
            hint=f"the names of {options.checkpoint} in their order: {', '.join(own)}",
        )
    _tell([f"{message}; classes are compared by their number"])


def _setting(args: argparse.Namespace, options: Options) -> EvaluationSetting:
    from hmsa_core.spec import EvaluationSetting

    return EvaluationSetting.model_validate(
        {
            "name": "evaluate",
            "scales": options.scales,
            "flip": options.flip,
            "mode": args.mode,
            "long_edge": args.long_edge,
            "score_at": args.score_at,
        }
    )


def _text(result: dict[str, Any]) -> str:
    width = max(len(name) for name in result["iou"])
    base, gain = result.get("baseline"), result.get("difference")
    lines = [_run_as(result, base), f"{'':<{width}}  model  baseline  difference"] if base else []
    for name, value in result["iou"].items():
        line = f"{name:<{width}}  {_points(value)}"
        if base and gain:
            line += f"     {_points(base['iou'][name])}  {_signed(*gain['classes'][name])}"
        lines.append(line)
    line = f"{'mean IoU':<{width}}  {_points(result['mean_iou'])}"
    if base and gain:
        line += f"     {_points(base['mean_iou'])}  {_signed(gain['value'], gain['low'], gain['high'])}"
    elif result["interval"]["low"] is not None:
        line += f" [{_points(result['interval']['low']).strip()}, {_points(result['interval']['high']).strip()}]"
    lines.append(f"{line}   ({result['images']} images)")
    if "boundary" in result:
        lines.append(f"{'boundary':<{width}}  {_points(result['boundary']['mean_iou'])}   (mean boundary IoU)")
        lines.append(f"{'ECE':<{width}}  {_points(result['ece'])}   (calibration error)")
    if base and gain and gain["low"] is None:
        lines.append(
            "no interval: all images are one block"
            if gain["blocks"] < 2
            else "no interval: too few labelled pixels to compare"
        )
    elif base and gain:
        lines.append(
            f"{100 * gain['level']:g} % intervals over {gain['blocks']} blocks of images, the same draws for both; "
            "how two trainings of one recipe differ is not in them"
        )
    return "\n".join(lines) + "\n"


def _run_as(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How both were run: each checkpoint has scales of its own."""
    from pipeline.results import how_run

    told = [how_run(one) for one in (ours, theirs)]
    return f"both at {told[0]}" if told[0] == told[1] else f"model at {told[0]}, baseline at {told[1]}"


def _points(value: float | None) -> str:
    return "    -" if value is None else f"{100 * value:5.1f}"


def _signed(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "     -"
    if low is None or high is None:
        return f"{100 * value:+6.1f}"
    return f"{100 * value:+6.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
