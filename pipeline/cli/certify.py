"""Certify the labels of a store: answers about drawn pixels choose each class's threshold, with a promise that holds.

With a probability of at least 1 - delta, every certified class of this store is at least --target right at its
threshold. That holds whatever the errors look like and whenever the answers stop. Answers come from people
(`autolabel serve`), or from true label maps. Finished questions (`autolabel ask`) have answered some pixels already.
The certificate lies next to the store; `autolabel verify --certificate` checks it.

autolabel certify labels/raw --target 0.95
autolabel certify labels/raw --target 0.9 --budget 1000 --answers fine_labels --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.review.certificate import Certificate
    from pipeline.review.view import StoreView

_JSON = ("certified", "threshold", "code", "draws", "right", "unsure", "precision", "lower", "coverage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="folder of a label store, raw or finished")
    add("--target", type=float, default=0.95, metavar="P", help="precision (default: %(default)s)")
    add("--delta", type=float, default=0.05, metavar="D", help="chance of any false certificate (default: %(default)s)")
    add("--classes", nargs="+", default=[], metavar="NAME", help="these classes only")
    add("--budget", type=int, default=300, metavar="N", help="pixels to answer; 0: questions alone (%(default)s)")
    add("--answers", type=Path, metavar="DIR", help='true label maps NAME.png; void is "can\'t tell"')
    text = "what they hold, as in `evaluate`; auto: ids or trainIds, whichever agrees with the labels"
    add("--ids", choices=("auto", "file", "train", "colours"), default="auto", help=text)
    add("--policy", type=Path, metavar="F", help="its calibration table is the guess that saves draws")
    add("--bound", default="betting", metavar="NAME", help="rule of the proof (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)")
    add("--who", default="", metavar="NAME", help="who answers")
    add("--out", type=Path, metavar="FILE", help="certificate (default: STORE.certificate.json)")
    add("--save-policy", type=Path, metavar="F", help="write the certified thresholds as a policy")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Draw pixels, answer them from true labels if given, and print the results."""
    from hmsa_core.io.errors import ConfigError
    from hmsa_core.labels.store.format import refuse_in_store
    from pipeline.review.certificate import Certificate
    from pipeline.review.certification import certified_policy
    from pipeline.review.precision import calibration_policy, load_policy
    from pipeline.review.spot_check import SpotFile
    from pipeline.review.view import StoreView

    view = StoreView(args.store)
    file = SpotFile(Certificate, view, args.out)
    for path in (args.out, args.save_policy):
        if path is not None:
            refuse_in_store(path)
    known = args.policy = args.policy if args.policy is not None else calibration_policy(view.path)[0]
    if known is not None and args.save_policy is not None and args.save_policy.resolve() == known.resolve():
        raise ConfigError(
            f"--save-policy {args.save_policy}: the certificate starts from this policy", hint="give another file"
        )
    # Without label maps people answer on the page; a certificate of this plan is begun here if there is none.
    found = file.start(_by_labels(view, args) if args.answers is not None else _begin(view, args))
    if file.aside is not None:
        sys.stderr.write(f"note: the answers of another certificate are kept in {file.aside}\n")
    if args.save_policy is not None:
        measured = None if known is None else load_policy(known, view)
        certified_policy(found, view, measured).save(args.save_policy)
    results = found.results()
    if args.json:
        rows = {name: {key: row[key] for key in _JSON} for name, row in results.items()}
        sys.stdout.write(json.dumps({"classes": rows, "more": found.more()}, indent=1) + "\n")
    else:
        _print(found, results, file.path)
        more = found.more()
        sys.stdout.write(f"{more['answers']} more answers: about {more['pixels']:,} pixels ({more['coverage']:.1%})\n")
        if args.answers is None:
            on_page = view.kind == "raw" and args.out is None  # the page certifies raw stores only
            _print_wanted(results, args.store, on_page=on_page)
        for row in found.expected_wrong(view, limit=3):
            sys.stdout.write(f"about {row['wrong_pixels']:,} wrong kept pixels: {row['class']} in {row['image']}\n")
    return 0


def _begin(view: StoreView, args: argparse.Namespace) -> Certificate:
    from pipeline.review.certification import begin

    chosen = {key: getattr(args, key) for key in ("target", "delta", "budget", "seed", "classes", "policy", "bound")}
    by = "people" if args.answers is None else str(args.answers)
    return begin(view, who=args.who, answers=by, **chosen)


def _by_labels(view: StoreView, args: argparse.Namespace) -> Certificate:
    from hmsa_core.runtime.progress import Progress
    from pipeline.review.certification import TrueLabels, answer_all

    labels = TrueLabels(args.answers, view, args.ids)
    certificate = _begin(view, args)
    sys.stderr.writelines(f"note: {note}\n" for note in labels.notes)
    with Progress(args.budget, what="certify", unit="draws") as progress:
        answer_all(certificate, view, labels, lambda draws: progress.update(draws - progress.done))
    return certificate


def _print(found: Certificate, results: dict[str, dict[str, Any]], out: Path) -> None:
    value, write = found.value, sys.stdout.write
    passed = sum(row["certified"] for row in results.values())
    served = len(found.items) - len(found.drawn)
    write(
        f"{passed} of {len(results)} classes certified at {value['target']:g}, confidence {1 - value['delta']:g} for "
        f"all together; {len(found.drawn)} of {value['budget']} pixels"
        f"{f', and {served} answers to questions' if served else ''}\n\n"
    )
    head = ("threshold", "judged", "right", "unsure", "estimate", "at least", "kept")
    write(f"{'class':22}" + "".join(f"{text:>10}" for text in head) + "\n")
    for name, row in results.items():
        estimate = "-" if row["precision"] is None else f"{row['precision']:.1%}"
        write(
            f"{name:22}{row['threshold'] or 'none':>10}{row['draws']:>10}{row['right']:>10}{row['unsure']:>10}"
            f"{estimate:>10}{row['lower']:>10.1%}{row['coverage']:>10.1%}\n"
        )
    write("(estimate: of the answers at the threshold, or where there is none yet, at the next one to be tried)\n")
    write(f"\n{out}\n")


def _print_wanted(results: dict[str, dict[str, Any]], store: Path, *, on_page: bool) -> None:
    """Print how many more answers each class needs, the pixels that they bring, and where to answer."""
    for name, row in results.items():
        if row["more_draws"] is not None:
            aim = "for a lower threshold" if row["certified"] else "until it is certified"
            sys.stdout.write(f"{name}: about {row['more_draws']} more answers {aim}, {row['more_pixels']:,} pixels\n")
    if on_page:
        sys.stdout.write(f"answer them on the page: autolabel serve {store}, then key u\n")
