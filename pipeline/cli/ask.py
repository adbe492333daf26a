"""Ask which class regions of a store are; answers become training labels of the source human.

Each question is a picture (STORE.question.png: the region in its image, and three times as large), which an image
viewer shows anew. Answers: Enter = the label is right, also at the cross, a class by name or number, m = mixed,
x = can't tell, u = undo, q = go on another day. Answers lie in the store's review file, which `pseudo-label` honours
with any teacher. Once all are answered, `certify` counts what is said of the crosses.

autolabel ask labels/raw --budget 500 --aim Fence Pole --alike
autolabel ask labels/raw --budget 500 --answers true_labels --noise 0.05 --json     (a person is simulated)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.review.questions import Questions
    from pipeline.review.spot_check import SpotFile
    from pipeline.review.view import StoreView


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="folder of a raw label store")
    add("--budget", type=int, default=100, metavar="N", help="questions (default: %(default)s)")
    add("--aim", nargs="+", default=[], metavar="CLASS", help="half of the questions are about these classes")
    add("--answers", type=Path, metavar="DIR", help="true label maps NAME.png answer by the most frequent class")
    text = "what they hold, as in `evaluate`; auto: ids or trainIds, whichever agrees with the labels"
    add("--ids", choices=("auto", "file", "train", "colours"), default="auto", help=text)
    add("--noise", type=float, default=0.0, metavar="R", help="share of --answers that are a random class")
    add("--alike", action="store_true", help="then correct regions like the answered ones, if that is right")
    add("--images", type=Path, metavar="ROOT", help="folder of the photographs (default: the workspace's)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)")
    add("--who", default="", metavar="NAME", help="who answers")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Draw questions, take the answers, and print what they brought."""
    from hmsa_core.io.errors import ConfigError
    from pipeline.review.precision import workspace_around
    from pipeline.review.price import price
    from pipeline.review.questions import Questions
    from pipeline.review.session import image_root
    from pipeline.review.spot_check import SpotFile
    from pipeline.review.view import StoreView

    if not 0 <= args.noise < 1:
        raise ConfigError(f"--noise {args.noise:g}: expected 0 to 1")
    view = StoreView(args.store, images=args.images or image_root(args.store))
    answer = _person(view) if args.answers is None else _maps(view, args)
    file = SpotFile(Questions, view)
    found = file.start(Questions.draw(view, budget=args.budget, seed=args.seed, aim=args.aim))
    if file.aside is not None:
        sys.stderr.write(f"note: other questions with their answers are kept in {file.aside}\n")
    found = _ask(file, found, view, answer, args.who)
    brought = price(found, view)
    if args.alike:
        from pipeline.review.alike import spread  # loads the trunk's framework

        brought["alike"] = spread(view)
    left = sum(1 for _ in found.open())
    if args.json:
        sys.stdout.write(json.dumps({**brought, "open": left, "file": str(file.path)}, indent=1) + "\n")
    else:
        _print(brought, left, file.path)
        how = "`dvc repro`" if workspace_around(view.path) else "`autolabel export` of this store"
        sys.stdout.write(f"now run {how}: the answers win over the teacher's labels\n")
    return 0


def _ask(
    file: SpotFile[Questions],
    found: Questions,
    view: StoreView,
    answer: Callable[[Questions, int], tuple[str, str]],
    who: str,
) -> Questions:
    """Ask until all is answered or the person leaves; "u" withdraws the person's last answer and asks it again.

    `answer` returns what a question's region is, and the class at its cross if that is known.
    """
    from functools import partial

    from hmsa_core.io.errors import InputError
    from pipeline.review.questions import Questions

    begin = None  # those between it and the next question are not looked at again
    while (number := next(found.open(who, begin), None)) is not None:
        said, cross = answer(found, number)
        if said == "q":
            break
        if said != "u":
            say = partial(Questions.answer, view=view, number=number, verdict=said, who=who, cross=cross)
            found, begin = file.change(found.id, say), number
            continue
        try:
            begin = found.last_of(who)
            found = file.change(found.id, partial(Questions.undo, view=view, number=begin))
        except InputError as error:
            sys.stderr.write(f"{error.message}\n")
    return found


def _person(view: StoreView) -> Callable[[Questions, int], tuple[str, str]]:
    """Questions in the terminal, with a picture next to the store."""
    from hmsa_core.io.errors import InputError
    from pipeline.review.questions import answer_of
    from pipeline.review.region_picture import draw_question

    shown = view.path.resolve().with_name(f"{view.name}.question.png")
    names = ", ".join(f"{c} {name}" for c, name in enumerate(view.classes.classes))
    sys.stderr.write(f"{names}\nEnter right, m mixed, x can't tell, u undo, q leave; look at {shown}\n")

    def answer(questions: Questions, number: int) -> tuple[str, str]:
        item = questions.located(view, number)
        draw_question(view, item["name"], questions.region(view, number), (item["x"], item["y"]), shown)
        while True:
            sys.stderr.write(f"{item['name']}: {view.classes.classes[item['class']]}? ")
            sys.stderr.flush()
            line = sys.stdin.readline()
            if line.strip() in ("u", "q") or not line:
                return line.strip() or "q", ""
            try:
                return answer_of(line, view), ""
            except InputError as error:
                sys.stderr.write(f"{error.message}: {error.hint}\n")

    return answer


def _maps(view: StoreView, args: argparse.Namespace) -> Callable[[Questions, int], tuple[str, str]]:
    """A simulated person: the most frequent class of the region in true label maps, at times a random one."""
    import numpy as np

    from hmsa_core.taxonomy import IGNORE
    from pipeline.review.certification import TrueLabels
    from pipeline.review.questions import UNSURE

    labels, rng = TrueLabels(args.answers, view, args.ids), np.random.default_rng([args.seed, 1])
    sys.stderr.writelines(f"note: {note}\n" for note in labels.notes)

    def name(class_id: int) -> str:
        return UNSURE if class_id == IGNORE else view.classes.classes[class_id]

    def answer(questions: Questions, number: int) -> tuple[str, str]:
        item, region = questions.located(view, number), questions.region(view, number)
        truth = labels.truth(item["name"])
        slip, other = rng.random() < args.noise, int(rng.integers(view.classes.num_classes))
        if truth is None:
            return UNSURE, ""
        true = truth[region.window][region.mask]
        most = int(np.bincount(true, minlength=256).argmax())
        said = name(other if slip and most != IGNORE else most)
        return said, "" if slip else name(int(truth[item["y"], item["x"]]))

    return answer


def _print(brought: dict[str, Any], left: int, out: Path) -> None:
    heads, shares = ("answers", "minutes", "labelled", "corrected", "ignored"), ("before", "after")
    sys.stdout.write("".join(f"{head:>12}" for head in heads) + "".join(f"{head:>24}" for head in shares) + "\n")
    for row in brought["price"]:
        ends = ["{:.1%} [{:.1%}, {:.1%}]".format(*row[head]) for head in shares]
        sys.stdout.write("".join(f"{row[head]:>12,}" for head in heads) + "".join(f"{end:>24}" for end in ends) + "\n")
    sys.stdout.write("(pixels; labels that are right before and after corrections, 95 % interval)\n")
    last = brought["last"]
    sys.stdout.write(
        "the last {answers}: {minutes} min, {labelled:,} labelled, {corrected:,} corrected\n".format(**last)
    )
    sys.stdout.write("".join(f"{part['words']}\n" for part in (brought, brought.get("alike")) if part))
    sys.stdout.write(f"{left} {'question is' if left == 1 else 'questions are'} open\n{out}\n")
