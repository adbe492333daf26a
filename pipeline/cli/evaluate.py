"""Score a network on a folder of images and a folder of labels with the same stems.

Labels hold the ids of the class file, or, with --ids train, trainIds (255 = ignored), or, with --ids colours, the
colours of the class file. Images of any size; a label of another size than its image is scored at its own size.
Folders may hold sub-folders; Cityscapes' names (leftImg8bit/val, gtFine/val) and CamVid's (*_L.png) are known.

autolabel evaluate --checkpoint models/student --images DIR --labels DIR --classes classes.json --json --details
autolabel evaluate --checkpoint models/student --baseline teacher.yaml --images DIR --labels DIR --classes FILE
autolabel evaluate --teacher onnx:a.onnx --images DIR --labels DIR --classes FILE
autolabel evaluate --checkpoint models/pretrain --images DIR --labels DIR --classes mapillary_v1.2 --long-edge 2177
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.inference_options import add_options, pin_threads, positive, runtime_of, teacher_of, tell

ANSWER = "hmsa-evaluation"  # format of `autolabel evaluate --json`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel evaluate`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    add("--labels", type=Path, required=True, metavar="DIR", help="folder of label maps, same stems")
    text = "file of class names (docs/own-data.md), or a public label set: cityscapes, mapillary_v1.2, voc, ..."
    add("--classes", required=True, metavar="FILE", help=text)
    text = (
        "what labels hold: the class file's ids, trainIds (255 = ignored) or colours (black = ignored); auto: ids, "
        "asks if they could be trainIds"
    )
    add("--ids", choices=("auto", "file", "train", "colours"), default="auto", help=text)
    add("--skip-unlabelled", action="store_true", help="leave out images without a label; they are counted")
    add("--long-edge", type=positive, metavar="PIXELS", help="bring images to it (Mapillary: 2177)")
    text = "original: scores are enlarged to the label's size; resized: labels too, as the released code scores"
    add("--score-at", choices=("original", "resized"), default="original", help=text)
    add("--json", action="store_true", help="print JSON: mean_iou, iou by class name, images, ...")
    text = "also boundary IoU, IoU near boundaries, reliability, weights of the scales, cities, confusions (JSON)"
    add("--details", action="store_true", help=text)
    add("--plots", type=Path, metavar="DIR", help="--details, and as pictures there: confusions, reliability, IoU")
    text = "a second checkpoint, or a SPEC as for --teacher: the difference is printed with its interval"
    add("--baseline", metavar="F", help=text)
    text = "neighbours by number that intervals draw together, for pictures of one drive are alike (default: 3)"
    add("--block-length", type=positive, default=3, metavar="N", help=text)
    add_options(parser, teachers=True, modes=True)


def run(args: argparse.Namespace) -> int:
    """Score all pairs and print the result."""
    runtime = runtime_of(args, threads=pin_threads(args))
    from hmsa_core.inference.evaluation.evaluate_folder import evaluate
    from pipeline.jobs.provenance import describe_run

    # Before hours of work: fail if the folder cannot be written, and describe the code that is loaded now.
    if args.plots is not None:
        args.plots.mkdir(parents=True, exist_ok=True)
    made = {"command": args.command_line, **describe_run(("hmsa_core", "pipeline"))} if args.json else {}
    names = ("ids", "skip_unlabelled", "mode", "long_edge", "score_at", "block_length")
    result = evaluate(
        teacher_of(args),
        args.images,
        args.labels,
        args.classes,
        baseline=args.baseline,
        scales=args.scales,
        flip=args.flip,
        runtime=runtime,
        tell=tell,
        details=bool(args.details or args.plots),
        **{name: getattr(args, name) for name in names},
    )
    if args.json:
        answer = {"format": ANSWER, "version": 1, **result, "made": made}
        sys.stdout.write(json.dumps(answer, indent=1, allow_nan=False) + "\n")
    else:
        sys.stdout.write(_text(result))
    if args.plots is not None:
        sys.stdout.flush()
        _write_plots(args.plots, {"model": result} | ({"baseline": result["baseline"]} if args.baseline else {}))
    return 0


def _write_plots(folder: Path, scored: Mapping[str, dict[str, Any]]) -> None:
    """Write confusion-NAME.png of each model, reliability.png and iou.png from figures with details."""
    import numpy as np

    from pipeline.report import plots  # here, because it needs the optional packages [report]

    classes = next(iter(scored.values()))["classes"]
    for name, one in scored.items():
        title = f"{name}: share of each true class"
        plots.confusion(folder / f"confusion-{name}.png", np.array(one["confusion"]), classes, title=title)
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {"confidence means what it says": ([0, 1], [0, 1])}
    for name, one in scored.items():
        bins = one["reliability"]
        full = [k for k, pixels in enumerate(bins["pixels"]) if pixels]
        series[name] = ([bins["confidence"][k] for k in full], [bins["accuracy"][k] for k in full])
    plots.lines(
        folder / "reliability.png", series, title="Reliability", x="confidence", y="accuracy", limits=(0.0, 1.0)
    )
    iou = {name: [one["iou"][c] for c in classes] for name, one in scored.items()}
    plots.bars(folder / "iou.png", classes, iou, title="IoU by class", x="IoU")


def _text(result: dict[str, Any]) -> str:
    width = max(len(name) for name in result["iou"])
    base, gain = result.get("baseline"), result.get("difference")
    lines = [_run_as(result, base), f"{'':<{width}}  model  baseline  difference"] if base else []
    for name, value in result["iou"].items():
        more = f"     {_points(base['iou'][name])}  {_signed(*gain['classes'][name])}" if base and gain else ""
        lines.append(f"{name:<{width}}  {_points(value)}{more}")
    more, ends = "", result["interval"]
    if base and gain:
        more = f"     {_points(base['mean_iou'])}  {_signed(gain['value'], gain['low'], gain['high'])}"
    elif ends["low"] is not None:
        more = f" [{_points(ends['low']).strip()}, {_points(ends['high']).strip()}]"
    lines.append(f"{'mean IoU':<{width}}  {_points(result['mean_iou'])}{more}   ({result['images']} images)")
    if "boundary" in result:
        lines.append(f"{'boundary':<{width}}  {_points(result['boundary']['mean_iou'])}   (mean boundary IoU)")
        lines.append(f"{'ECE':<{width}}  {_points(result['ece'])}   (calibration error)")
    if base and gain and gain["low"] is None:
        lacks = "all images are one block" if gain["blocks"] < 2 else "too few labelled pixels to compare"
        lines.append(f"no interval: {lacks}")
    elif base and gain:
        lines.append(
            f"{100 * gain['level']:g} % intervals over {gain['blocks']} blocks of images, the same draws for both; "
            "how two trainings of one recipe differ is not in them"
        )
    return "\n".join(lines) + "\n"


def _run_as(model: dict[str, Any], baseline: dict[str, Any]) -> str:
    """Settings of both runs as text, since each may have other scales."""
    from pipeline.report.results import how_run

    text = [how_run(one) if one["scales"] else "the scales of its file" for one in (model, baseline)]
    return f"both at {text[0]}" if text[0] == text[1] else f"model at {text[0]}, baseline at {text[1]}"


def _points(value: float | None) -> str:
    return "    -" if value is None else f"{100 * value:5.1f}"


def _signed(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "     -"
    if low is None or high is None:
        return f"{100 * value:+6.1f}"
    return f"{100 * value:+6.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
