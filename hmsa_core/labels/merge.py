"""Merging the teacher's labels with human coarse labels, by rules measured where the truth is known.

Outside human polygons the teacher fills, where it passed its threshold. Inside, a human pixel stays, unless
the teacher surely says another class; then a rule per (human, teacher) pair decides: keep the human's, ignore
(the default), or take the teacher's. So a human pixel only stays or becomes 255 unless its pair is listed, and
255 becomes a class only through a label that passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import InputError
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.intervals import lower_bound
from hmsa_core.labels.thresholds.settings import MergeConfig
from hmsa_core.taxonomy import IGNORE, ClassTable

HUMAN, IGNORED, TEACHER = 0, 1, 2
_ACTIONS = ("human", "ignore", "teacher")  # by number

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class MergeRules:
    """What to do with each (human class, teacher class) pair that differs: uint8 (C, C) of HUMAN, IGNORED, TEACHER.

    The diagonal means agreement and is always HUMAN (both are the same label). `evidence` lists the pairs that
    were measured or set by hand; every other pair has the default.
    """

    classes: ClassTable
    actions: NDArray[np.uint8]
    evidence: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        c = self.classes.num_classes
        if self.actions.shape != (c, c) or self.actions.dtype != np.uint8 or np.diagonal(self.actions).any():
            raise InputError(f"merge rules must be uint8 ({c}, {c}) with HUMAN on the diagonal")

    @classmethod
    def default(cls, classes: ClassTable, config: MergeConfig | None = None) -> MergeRules:
        """The default for every pair, then the rules that were written by hand."""
        config = config or MergeConfig()
        return cls(classes, _defaults(classes, config)).with_hand_rules(config)

    def with_hand_rules(self, config: MergeConfig) -> MergeRules:
        """These rules with those of the parameters on top."""
        actions, evidence = self.actions.copy(), list(self.evidence)
        for rule in config.rules:
            human, teacher = self.classes.index(rule.human), self.classes.index(rule.teacher)
            actions[human, teacher] = _ACTIONS.index(rule.action)
            evidence.append(rule.model_dump() | {"source": "set by hand"})
        return MergeRules(self.classes, actions, evidence)

    def to_json(self) -> dict[str, Any]:
        """Class table, the actions of all pairs by name, and the evidence."""
        return {
            "class_table": self.classes.to_json(),
            "evidence": self.evidence,
            "actions": [[_ACTIONS[a] for a in row] for row in self.actions],
        }


def _defaults(classes: ClassTable, config: MergeConfig) -> NDArray[np.uint8]:
    actions = np.full((classes.num_classes,) * 2, _ACTIONS.index(config.default), np.uint8)
    np.fill_diagonal(actions, HUMAN)
    return actions


def merge_labels(pseudo: Labels, human: Labels | None, rules: MergeRules) -> tuple[Labels, Labels]:
    """Final labels, and where each pixel comes from (SOURCES), from the teacher's that passed and human ones.

    All maps are uint8 HxW; 255 in `pseudo` is unsure, in `human` outside of polygons.
    """
    if human is None:
        human = np.full_like(pseudo, IGNORE)
    if pseudo.shape != human.shape or pseudo.dtype != np.uint8 or human.dtype != np.uint8:
        raise InputError(
            f"teacher's and human label must be uint8 of one shape, got {pseudo.dtype} {pseudo.shape} "
            f"and {human.dtype} {human.shape}"
        )
    label_of, source_of = _tables(rules)
    key = (human.astype(np.uint16) << 8) | pseudo
    return label_of[key], source_of[key]


def _tables(rules: MergeRules) -> tuple[Labels, Labels]:
    """Result and source for every (human, teacher) pair of bytes, 65,536 entries each."""
    c = rules.classes.num_classes
    label = np.full((256, 256), IGNORE, np.uint8)
    source = np.full((256, 256), SOURCES["none"], np.uint8)
    ids = np.arange(c, dtype=np.uint8)
    label[IGNORE, :c], source[IGNORE, :c] = ids, SOURCES["teacher"]
    label[:c, IGNORE], source[:c, IGNORE] = ids, SOURCES["human"]
    label[:c, :c] = np.choose(rules.actions, [ids[:, None], np.uint8(IGNORE), ids[None, :]])
    source[:c, :c] = np.choose(rules.actions, [SOURCES[name] for name in ("human", "none", "teacher")])
    source[ids, ids] = SOURCES["both"]
    return label.reshape(-1), source.reshape(-1)


def measure_rules(curves: Curves, codes: NDArray[np.integer], config: MergeConfig, confidence: float) -> MergeRules:
    """Rules for the pairs in which one side surely wins, from images with human, fine and teacher's labels.

    Args:
        curves: measured with human labels.
        codes: the policy's codes. Only teacher pixels that pass them count, as in merging.
        confidence: of the lower bound on the win rate (blocks are the unit, as everywhere).
    """
    if not config.measure:
        return MergeRules.default(curves.classes, config)
    actions, evidence = _defaults(curves.classes, config), []
    c, found = curves.classes.num_classes, curves.conflicts
    passed = (found.code >= np.asarray(codes)[found.teacher]) & (found.human != found.teacher)
    wins = np.zeros((len(curves.blocks), c, c, 3), np.int64)
    places = (found.block, found.human, found.teacher, found.outcome)
    np.add.at(wins, tuple(place[passed] for place in places), found.pixels[passed])
    total = wins.sum(axis=3)
    bounds = [lower_bound(total, wins[..., i], confidence) for i in (0, 1)]
    for human, teacher in np.argwhere(total.sum(axis=0) > 0):
        blocks, pixels = int(np.count_nonzero(total[:, human, teacher])), int(total[:, human, teacher].sum())
        low = [float(b[human, teacher]) for b in bounds]
        if blocks >= config.min_blocks and max(low) >= config.win_rate:
            actions[human, teacher] = HUMAN if low[0] >= low[1] else TEACHER
        shares = wins[:, human, teacher].sum(axis=0) / pixels
        evidence.append(
            {
                "human": curves.classes.classes[human],
                "teacher": curves.classes.classes[teacher],
                "action": _ACTIONS[actions[human, teacher]],
                "source": "measured",
                "blocks": blocks,
                "pixels": pixels,
                "human_right": round(float(shares[0]), 4),
                "teacher_right": round(float(shares[1]), 4),
                "human_lower": round(low[0], 4),
                "teacher_lower": round(low[1], 4),
            }
        )
    return MergeRules(curves.classes, actions, evidence).with_hand_rules(config)


def corrected_precision(
    pairs: NDArray[np.int64], calibration_pairs: NDArray[np.int64], curves: Curves, codes: NDArray[np.integer]
) -> list[float | None]:
    """Precision per class on images that only have coarse labels, corrected for the bias of coarse labels.

    Coarse polygons lie inside objects, so agreement with them overestimates the precision. On calibration images the
    true precision is known as well: result = agreement here + (true precision - agreement) on calibration images.
    `pairs` and `calibration_pairs` are StoreStatistics.pairs(), (C+1, C, 256); `codes` the policy's thresholds, (C,).
    """
    there, here = _agreement(calibration_pairs, codes), _agreement(pairs, codes)
    result: list[float | None] = []
    for c, code in enumerate(np.asarray(codes).tolist()):
        total = int(curves.kept("total")[:, c, code].sum()) if code < NUM_CODES else 0
        estimate, reference = here[c], there[c]
        if estimate is None or reference is None or not total:
            result.append(None)
            continue
        true = float(curves.kept("correct")[:, c, code].sum()) / total
        result.append(min(1.0, max(0.0, estimate + true - reference)))
    return result


def _agreement(pairs: NDArray[np.int64], codes: NDArray[np.integer]) -> list[float | None]:
    shares: list[float | None] = []
    for c, code in enumerate(np.asarray(codes).tolist()):
        kept = pairs[:-1, c, min(code, NUM_CODES) :].sum(axis=1)
        shares.append(float(kept[c]) / float(kept.sum()) if kept.sum() else None)
    return shares
