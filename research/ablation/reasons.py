"""What is thought to lie behind the tables `scales` and `labels`, each reason by a training that takes it away."""

from __future__ import annotations

from typing import Any

from pipeline.params import Params
from research.ablation.plan import Ablation, Comparison, Labels
from research.ablation.rows import PAIRS, SETS, from_pretraining, main_row, scale_rows

__all__ = ["make_reasons"]

_NARROW: dict[str, Any] = {"prefix": "narrow-", "told": "trained up to 1x: ", "changes": (("augment.scale_max", 1.0),)}
_OWN: dict[str, Any] = {
    "prefix": "own-",
    "told": "with a loss at each scale: ",
    "changes": (("loss.per_scale_weight", 0.4),),  # the auxiliary loss's weight
}
_TWO: dict[str, Any] = {
    "prefix": "two-",
    "told": "trained on {0.5, 1}: ",
    "changes": (("model.train_scales", SETS[0]),),
}
_THREE: dict[str, Any] = {
    "prefix": "three-",
    "told": "trained on {0.5, 1, 2}: ",
    "changes": (("model.train_scales", SETS[1]),),
}
_HURTS = (
    ("narrow-average-0.5-1-2", "narrow-average-0.5-1", "adding 2x hurts average"),
    ("narrow-average-1-2", "narrow-single-1", "adding 2x alone to 1x hurts average"),
    ("narrow-hierarchical-0.5-1-2", "narrow-hierarchical-0.5-1", "adding 2x hurts hierarchical"),
)
_HELPS = (
    ("narrow-average-0.5-1", "narrow-single-1", "adding 0.5x helps average"),
    ("narrow-hierarchical-0.5-1", "narrow-single-1", "hierarchical > single scale"),
    ("narrow-hierarchical-0.5-1", "narrow-average-0.5-1", "hierarchical > average"),
    ("narrow-hierarchical-0.5-1-2", "narrow-average-0.5-1-2", "hierarchical > average"),
    ("own-hierarchical-1", "hierarchical-1", "a loss of its own helps {1} alone"),
    ("own-hierarchical-0.5-1", "hierarchical-0.5-1", "a loss of its own helps {0.5, 1}"),
    ("own-hierarchical-0.5-1-2", "hierarchical-0.5-1-2", "a loss of its own helps {0.5, 1, 2}"),
    ("own-hierarchical-1", "single-1", "hierarchical with a loss at each scale, {1} alone > single scale"),
    ("own-hierarchical-0.5-1", "average-0.5-1", "hierarchical with a loss at each scale > average"),
    ("own-hierarchical-0.5-1-2", "average-0.5-1-2", "hierarchical with a loss at each scale > average"),
    ("hierarchical-0.5-1-2", "explicit-0.5-1-2", "hierarchical > explicit, which alone is trained on 2x"),
    ("three-hierarchical-0.5-1-2", "explicit-0.5-1-2", "hierarchical > explicit, both trained on {0.5, 1, 2}"),
    ("hierarchical-0.5-1", "two-explicit-0.5-1", "hierarchical > explicit, both trained on {0.5, 1}"),
    ("three-hierarchical-0.5-1-2", "hierarchical-0.5-1-2", "2x in training helps hierarchical"),
    ("both", "attention", "auto-labels > fine labels only"),
    ("all-classes", "both", "labels of all classes > of those with a threshold"),
    ("all-classes", "attention", "labels of all classes > fine labels only"),
    ("both", "coarse", "auto > coarse as drawn"),
    ("all-classes", "coarse", "auto of all classes > coarse as drawn"),
    ("coarse", "attention", "coarse > fine labels only"),
)


def make_reasons(name: str, command: str, params: Params) -> Ablation:
    """Tests of the reasons; rows without a prefix are those of the tables in question.

    `narrow`: no enlarged picture is learned from, so 2x should hurt averaging, as the paper has it. `own`: each
    scale has a loss of its own, so the hierarchical model should be as good at {1} alone as the single-scale one.
    `two`, `three`: both kinds of attention are trained on the same scales, so explicit attention should not be better.
    `all-classes`: no threshold, so no class is missing from the auto-labelled half; what is left between it and
    `coarse`, people's polygons, is not owed to missing classes.
    """
    ignored = ("loss.rmi_ignore", params.student_train.loss.rmi_ignore)  # as table labels has it
    rows = (
        *scale_rows("single", "single", ((1.0,),), mode="single"),
        *scale_rows("average", "single", SETS[:2], mode="average"),
        *scale_rows("hierarchical", "hierarchical", ((1.0,), *SETS[:2])),
        *scale_rows("single", "single", ((1.0,),), mode="single", **_NARROW),
        *scale_rows("average", "single", (PAIRS[1], *SETS[:2]), mode="average", **_NARROW),
        *scale_rows("hierarchical", "hierarchical", SETS[:2], **_NARROW),
        *scale_rows("hierarchical", "hierarchical", ((1.0,), *SETS[:2]), **_OWN),
        *scale_rows("explicit", "explicit", SETS[:2]),
        *scale_rows("explicit", "explicit", SETS[:1], **_TWO),
        *scale_rows("hierarchical", "hierarchical", SETS[:2], **_THREE),
        main_row("attention", "fine labels", from_pretraining("hierarchical"), params),
        *(
            main_row(own, title, from_pretraining("hierarchical", ignored, labels=labels), params)
            for own, title, labels in (
                ("both", "fine and auto-labels", Labels()),
                ("all-classes", "fine and auto-labels of all classes, threshold 0", Labels(0.0)),
                ("coarse", "fine labels and human coarse ones as drawn", Labels("none", coarse=True)),
            )
        ),
    )
    comparisons = (*(Comparison(*c, hurts=True) for c in _HURTS), *(Comparison(*c) for c in _HELPS))
    return Ablation(name, "Tests of the reasons", "pseudo-label", rows, comparisons, command)
