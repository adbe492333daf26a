"""Answers to questions as draws of a certificate: they are given already, so they cost nobody anything.

A question draws a pixel with a known probability, and people say whether the label is right at its cross. Thinned draws
(`Questions.uniform`) are uniform over all pixels of their class. So they serve where the plan of a certificate wants a
draw of the class: the plan chooses class, reach and bet before it looks at the answer, and takes the draws in order.
Sets of questions come one after the other, and what is left of a set is given up with the first draw of the next one:
whether there is a next one may depend on the answers of the set before, but not on its own. So they end at the first
set that was begun and left. Sets of one seed draw alike: the first one counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hmsa_core.io.errors import StoreError
from pipeline.review.questions import Draw, Questions
from pipeline.review.spot_check import SpotFile, pixel
from pipeline.review.view import StoreView

Item = dict[str, Any]  # of a certificate; "set" and "number" name the question whose answer serves


class Given(NamedTuple):
    """Draws of finished sets of questions about a store, in the order in which people were asked.

    sets: draws by the id of the set. settings: what draws a set again (arguments of `Questions.draw`).
    """

    sets: dict[str, list[Draw]]
    settings: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, view: StoreView) -> Given:
        """All that lies next to a store and counts."""
        sets, settings, seeds = dict[str, list[Draw]](), dict[str, dict[str, Any]](), set[int]()
        for one in (found for found in SpotFile(Questions, view).every() if found.is_of(view)):
            seed, draws = one.value["seed"], one.given(view)
            if draws and seed not in seeds:
                sets[one.id] = draws
                settings[one.id] = {"budget": len(one.items), "seed": seed, "aim": one.value["aim"]}
                seeds.add(seed)
            elif any(item.get("cross") for item in one.items) and not draws:
                break
        return cls(sets, settings)

    def waiting(self, items: Sequence[Item]) -> Iterator[tuple[str, dict[int, list[Draw]]]]:
        """The set that served last in these items of a certificate, and all after it: id, and by class what is left."""
        used, ids = [item for item in items if "set" in item], list(self.sets)
        last = used[-1]["set"] if used else next(iter(ids), None)
        for set_id in ids[ids.index(last) :] if last in ids else ():
            taken = {item["class"]: item["number"] for item in used if item["set"] == set_id}
            left: dict[int, list[Draw]] = {}
            for draw in self.sets[set_id]:
                if draw.number > taken.get(draw.class_id, -1):
                    left.setdefault(draw.class_id, []).append(draw)
            yield set_id, left

    def refresh(self, items: Sequence[Item]) -> None:
        """Bring verdicts up to date: an answer may have been changed."""
        said = {(set_id, draw.number): draw.verdict for set_id, draws in self.sets.items() for draw in draws}
        for item in items:
            if "set" in item:
                item["verdict"] = said.get((item["set"], item["number"]), item["verdict"])


def check_given(items: Sequence[Item], settings: Mapping[str, dict[str, Any]], view: StoreView) -> None:
    """Draw the sets of questions again; a StoreError where an item is not the next draw of its class.

    Args:
        items: those of a certificate.
        settings: `Given.settings`.
        view: the store.
    """
    sets = {
        set_id: Questions.draw(view, budget=one["budget"], seed=one["seed"], aim=one["aim"])
        for set_id, one in settings.items()
    }
    items = [item for item in items if "set" in item]
    order = list(dict.fromkeys(item["set"] for item in items))
    left = {set_id: {c: list[int]() for c in range(view.classes.num_classes)} for set_id in order}
    for set_id, by_class in left.items():
        if set_id not in sets or sets[set_id].id != set_id:
            raise StoreError(f"no questions {set_id} are drawn from this store")
        for number in sets[set_id].uniform(view):
            by_class[sets[set_id].items[number]["class"]].append(number)
    if [item["set"] for item in items] != sorted((item["set"] for item in items), key=order.index):
        raise StoreError("it goes back to an earlier set of questions")
    for item in items:
        of_class = left[item["set"]][item["class"]]
        asked = sets[item["set"]].items[of_class.pop(0)] if of_class and of_class[0] == item["number"] else None
        where = None if asked is None else (asked["name"], asked["rank"])
        at = pixel(view, item["name"], item["class"], 0, item["rank"])
        if where != (item["name"], item["rank"]) or any(at[key] != item[key] for key in at):
            raise StoreError(f"question {item['number']} is not the next one about its class")
