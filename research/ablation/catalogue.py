"""The ablations. All rows of a table see the same number of images; what differs is in the row's own line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hmsa_core.io.errors import ConfigError
from hmsa_core.spec import EvaluationSetting
from pipeline.params import Params
from research.ablation.plan import Ablation, Comparison, Labels, Row, Training

__all__ = ["NAMES", "camvid_folder", "camvid_variant", "make_ablation", "named_variant"]

SETS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
PAIRS = ((0.25, 1.0), (1.0, 2.0))  # with {0.5, 1}: what one more scale brings into an average
Changes = tuple[tuple[str, Any], ...]
NAMES = ("scales", "labels", "reasons", "threshold", "merging", "losses", "camvid-table")
_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_IGNORED = (0.1, 0.3, 0.6)
_LOSSES: dict[str, Changes] = {
    "rmi-released": (("loss.main", "rmi"), ("loss.rmi_ignore", "released")),
    "rmi-masked": (("loss.main", "rmi"), ("loss.rmi_ignore", "masked")),
    # Stated though neither looks at it: rows keep their keys when the profile's form of RMI changes.
    "bce": (("loss.main", "released_bce"), ("loss.rmi_ignore", "released")),
    "cross-entropy": (("loss.main", "cross_entropy"), ("loss.rmi_ignore", "released")),
}
_MIXES = ("none", "cutmix", "classmix")
_COLOURS = (0.5, 1.0)
_MERGED_COLOURS = (0.0, 1.0)
_HARM = 0.005  # mean IoU; set before the first cell: less than this is no harm


def make_ablation(name: str, params: Params) -> Ablation:
    """An ablation as the workspace of `params` runs it.

    Tables of another profile than demo carry its name (of CamVid the variant's, too): their cells are other files.

    Raises:
        ConfigError: an unknown name, or an ablation that the profile cannot run.
    """
    makers = {
        "scales": _scales,
        "labels": _labels,
        "reasons": _reasons,
        "threshold": _threshold,
        "merging": _merging,
        "losses": _losses,
    }
    if name == "camvid-table":
        return _camvid(params)
    if name not in makers:
        raise ConfigError(f"unknown ablation {name!r}: choose one of {', '.join(NAMES)}")
    profile = camvid_folder(camvid_variant(params)) if params.profile == "camvid" else params.profile
    suffix = "" if profile == "demo" else f"-{profile}"
    return makers[name](f"{name}{suffix}", params)


# ------------------------------------------------------------------------------------------------ scales


def _scales(name: str, params: Params) -> Ablation:  # noqa: ARG001 - the same for every profile
    rows = [
        Row("single-1", "single scale", from_pretraining("single"), setting("single-1", (1.0,), mode="single")),
        *scale_rows("average", "single", (*PAIRS, *SETS), mode="average"),
        *scale_rows("max", "single", mode="max"),
        Row(
            "hierarchical-1",
            "hierarchical, {1} alone",
            from_pretraining("hierarchical"),
            setting("hierarchical-1", (1.0,)),
        ),
        *scale_rows("hierarchical", "hierarchical"),
        *scale_rows("explicit", "explicit"),
    ]
    return Ablation(name, "Fusing scales", "teacher-pretrain", tuple(rows), _scale_claims())


def _scale_claims() -> tuple[Comparison, ...]:
    two, three, four = (set_name(s) for s in SETS)
    return (
        *(Comparison(f"hierarchical-{s}", f"average-{s}", "hierarchical > average") for s in (two, three, four)),
        Comparison(f"hierarchical-{three}", f"max-{three}", "hierarchical > max"),
        Comparison(f"hierarchical-{three}", f"explicit-{three}", "hierarchical > explicit"),
        Comparison(f"hierarchical-{three}", "single-1", "hierarchical > single scale"),
        Comparison(f"hierarchical-{three}", "hierarchical-1", "hierarchical > its own single scale"),
        Comparison(f"hierarchical-{three}", f"hierarchical-{two}", "adding 2x helps hierarchical"),
        Comparison(f"hierarchical-{four}", f"hierarchical-{three}", "adding 0.25x helps hierarchical"),
        *(
            Comparison(
                f"hierarchical-{more}",
                f"hierarchical-{less}",
                f"adding {what} costs hierarchical less than {100 * _HARM:g} points",
                allowed=_HARM,
            )
            for more, less, what in ((three, two, "2x"), (four, three, "0.25x"))
        ),
        Comparison(f"average-{three}", f"average-{two}", "adding 2x hurts average", hurts=True),
        Comparison(f"average-{four}", f"average-{three}", "adding 0.25x hurts average", hurts=True),
        *(
            Comparison(f"average-{set_name(pair)}", "single-1", f"adding {other:g}x alone to 1x helps average")
            for other, pair in ((0.25, PAIRS[0]), (0.5, SETS[0]), (2.0, PAIRS[1]))
        ),
    )


# ------------------------------------------------------------------------------------------------ labels


def _labels(name: str, params: Params) -> Ablation:
    """The paper's table, and where the labels of the other half come from.

    Without attention the model is trained on a single scale and its scales are averaged. The rows without
    auto-labels see fine labels only; the paper's own baseline sees human coarse labels, which is row `coarse`.
    Rows with another half of labels treat its ignored pixels as the student's recipe does (table losses).
    """

    def on(kind: str, labels: Labels | None = None) -> Training:
        """A whole training from the pretraining; the auto-labelled half is mixed as the student's recipe says."""
        ignored = (("loss.rmi_ignore", params.student_train.loss.rmi_ignore),) if labels else ()
        return from_pretraining(kind, *ignored, labels=labels)

    auto, coarse, merged = Labels(), Labels("none", coarse=True), Labels(coarse=True)
    rows = (
        main_row("baseline", "no attention, fine labels", on("single"), params, "average"),
        main_row("attention", "+ attention", on("hierarchical"), params),
        main_row("auto", "+ auto-labels", on("single", auto), params, "average"),
        main_row("both", "+ both", on("hierarchical", auto), params),
        main_row("coarse", "attention, human coarse labels as drawn", on("hierarchical", coarse), params),
        main_row("both-coarse", "+ both, coarse labels merged", on("hierarchical", merged), params),
    )
    comparisons = (
        Comparison("attention", "baseline", "attention > baseline"),
        Comparison("auto", "baseline", "auto-labels > baseline"),
        Comparison("both", "attention", "both > attention alone"),
        Comparison("both", "auto", "both > auto-labels alone"),
        Comparison("both", "baseline", "both > baseline"),
        Comparison("both", "coarse", "auto > coarse as drawn"),
        Comparison("both-coarse", "coarse", "auto + coarse > coarse as drawn"),
        Comparison("both-coarse", "both", "auto + coarse > auto"),
    )
    return Ablation(name, "Attention and labels", "pseudo-label", rows, comparisons)


# --------------------------------------------------------------------------------------------- threshold


def _threshold(name: str, params: Params) -> Ablation:
    rows = [main_row("control", "fine labels only", from_teacher(), params)]
    rows += [main_row(f"t{t:g}", f"threshold {t:g}", from_teacher(labels=Labels(t)), params) for t in _THRESHOLDS]
    rows.append(main_row("policy", "policy (measured)", from_teacher(labels=Labels()), params))
    comparisons = (
        *(Comparison("policy", f"t{t:g}", f"policy > {t:g}") for t in _THRESHOLDS),
        Comparison("policy", "control", "auto-labels > fine labels only"),
        Comparison("t0.9", "control", "auto-labels of 0.9 > fine labels only"),
    )
    return Ablation(name, "Thresholds", "pseudo-label", tuple(rows), comparisons)


# ------------------------------------------------------------------------------------------------ losses


def _losses(name: str, params: Params) -> Ablation:
    """Loss on thresholded masks at three shares of ignored pixels; mixing, colour, a tail; the auxiliary loss."""
    usual = params.student_train.pseudo.colour
    rows = []
    for share in _IGNORED:
        for loss, changes in _LOSSES.items():
            own = f"{loss}-{100 * share:.0f}"
            title = f"{loss}, {100 * share:.0f} % ignored"
            rows.append(main_row(own, title, from_teacher(changes, Labels(ignored=share)), params))
    for loss, changes in _LOSSES.items():  # what the profile's student learns from: few pixels are ignored there
        training = from_teacher(changes, Labels(coarse=True))
        rows.append(main_row(f"{loss}-merged", f"{loss}, merged labels", training, params))
    for mix in _MIXES[1:]:
        training = from_teacher((*_LOSSES["rmi-masked"], ("pseudo.mix", mix)), Labels(coarse=True))
        title = f"mixing: {mix}, rmi-masked, merged labels"
        rows.append(main_row(f"mix-{mix}-merged", title, training, params))
    merged = [(f"colour-{100 * c:.0f}-merged", f"colour jitter {c:g}", ("pseudo.colour", c)) for c in _MERGED_COLOURS]
    tail_claims = []
    # A recipe that ends on fine labels has that end in every row; camvid-table has one without.
    if not params.student_train.pseudo.fine_only_epochs:
        tail = max(1, params.student_train.epochs // 6)
        merged.append(("tail-merged", f"last {tail} epochs on fine labels alone", ("pseudo.fine_only_epochs", tail)))
        tail_claims.append(
            Comparison("tail-merged", "rmi-masked-merged", "a tail on fine labels > none, merged labels")
        )
    for own, title, change in merged:
        training = from_teacher((*_LOSSES["rmi-masked"], change), Labels(coarse=True))
        rows.append(main_row(own, f"{title}, rmi-masked, merged labels", training, params))
    for mix in _MIXES:
        training = from_teacher((*_LOSSES["rmi-released"], ("pseudo.mix", mix)), Labels())
        rows.append(main_row(f"mix-{mix}", f"mixing: {mix}", training, params))
    for colour in _COLOURS:
        own, title = f"colour-{100 * colour:.0f}", f"colour jitter {colour:g} on auto-labelled crops"
        training = from_teacher((*_LOSSES["rmi-released"], ("pseudo.colour", colour)), Labels())
        rows.append(main_row(own, title, training, params))
    for aux, own in (("cross_entropy", "aux-cross-entropy"), ("rmi", "aux-released-rmi")):
        training = from_pretraining("hierarchical", ("loss.aux", aux))
        rows.append(main_row(own, f"auxiliary loss: {aux}", training, params))
    comparisons = (
        *(
            Comparison(f"rmi-masked-{100 * s:.0f}", f"{loss}-{100 * s:.0f}", f"masked RMI > {loss} at {100 * s:.0f} %")
            for s in _IGNORED
            for loss in _LOSSES
            if loss != "rmi-masked"
        ),
        *(
            Comparison("rmi-masked-merged", f"{loss}-merged", f"masked RMI > {loss} on merged labels")
            for loss in _LOSSES
            if loss != "rmi-masked"
        ),
        *(Comparison(f"mix-{mix}", "mix-none", f"{mix} > no mixing") for mix in _MIXES[1:]),
        *(
            Comparison(f"mix-{mix}-merged", "rmi-masked-merged", f"{mix} > no mixing on merged labels")
            for mix in _MIXES[1:]
        ),
        *(
            Comparison(f"colour-{100 * c:.0f}", "mix-none", f"colour {c:g} > the profile's {usual:g}")
            for c in _COLOURS
            if c != usual
        ),
        *(
            Comparison(f"colour-{100 * c:.0f}-merged", "rmi-masked-merged", f"colour {c:g} > {usual:g}, merged labels")
            for c in _MERGED_COLOURS
        ),
        *tail_claims,
        Comparison("aux-cross-entropy", "aux-released-rmi", "auxiliary cross-entropy > auxiliary RMI"),
    )
    return Ablation(name, "Losses and mixing", "pseudo-label", tuple(rows), comparisons)


# ------------------------------------------------------------------------------------------------ reasons


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


def _reasons(name: str, params: Params) -> Ablation:
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
    return Ablation(name, "Tests of the reasons", "pseudo-label", rows, comparisons)


# ------------------------------------------------------------------------------------------------ merging


_BESIDE_HUMAN: dict[str, Labels] = {
    "policy": Labels(coarse=True),
    "t0.9": Labels(0.9, coarse=True),
    "t0.5": Labels(0.5, coarse=True),
    "t0": Labels(0.0, coarse=True),
}


def _merging(name: str, params: Params) -> Ablation:
    """Students by their recipe; the auto-labelled half holds human polygons and what is merged into them.

    `-human`: a pixel that teacher and human call by two names keeps the human's. Otherwise the profile's default:
    it is ignored, and with it what the teacher finds hard is gone from inside of the polygons. The lower the threshold,
    the less a class is missing outside of them.
    """
    rows = [
        main_row("control", "fine labels only", from_teacher(), params),
        main_row("coarse", "human coarse labels as drawn", from_teacher(labels=Labels("none", coarse=True)), params),
    ]
    comparisons = [
        Comparison("policy", "control", "student (coarse + auto, policy) > fine labels only"),
        Comparison("coarse", "control", "coarse > fine labels only"),
    ]
    for own, labels in _BESIDE_HUMAN.items():
        told = "policy" if own == "policy" else f"threshold {labels.threshold:g}"
        kept = replace(labels, conflict="human")
        rows += [
            main_row(own, f"+ auto-labels, {told}", from_teacher(labels=labels), params),
            main_row(
                f"{own}-human", f"+ auto-labels, {told}; conflicts to the human", from_teacher(labels=kept), params
            ),
        ]
        comparisons += [
            Comparison(own, "coarse", f"coarse + auto ({told}) > coarse as drawn"),
            Comparison(f"{own}-human", "coarse", f"coarse + auto ({told}, conflicts to the human) > coarse as drawn"),
            Comparison(own, f"{own}-human", f"conflicts ignored > to the human ({told})"),
        ]
    comparisons += [
        Comparison(f"policy{end}", f"{other}{end}", f"policy > {name}{told}, beside coarse")
        for other, name in (("t0", "no threshold"), ("t0.5", "0.5"), ("t0.9", "0.9"))
        for end, told in (("", ""), ("-human", ", conflicts to the human"))
    ]
    title = "Auto-labels beside human polygons"
    return Ablation(name, title, "pseudo-label", tuple(rows), tuple(comparisons))


# ------------------------------------------------------------------------------------------------ CamVid


def camvid_variant(params: Params) -> str:
    """The variant of CamVid's splits, with the teacher's epochs where they are not the profile's: "default-1280"."""
    return named_variant(getattr(params.data.target, "variant", None) or "default", params.teacher_train.epochs)


def named_variant(variant: str, epochs: int | None) -> str:
    """The same from its parts; `epochs` None = the profile's."""
    return variant if epochs in (None, Params.of_profile("camvid").teacher_train.epochs) else f"{variant}-{epochs}"


def camvid_folder(variant: str) -> str:
    """Name of the workspace and of the run's file of such a variant: "camvid", "camvid-drive_shift", "camvid-1280"."""
    return "-".join(("camvid", *(part for part in variant.split("-") if part != "default")))


def _camvid(params: Params) -> Ablation:
    if params.profile != "camvid":
        raise ConfigError(
            f"camvid-table is for workspaces of profile camvid, this one has profile {params.profile}",
            hint="python -m research.ablate camvid-table --prepare --workspace workspaces/camvid",
        )
    rows = [
        main_row("teacher", "teacher, as it is", None, params),
        main_row("control", "control: fine labels only", from_teacher(), params),
        main_row("coarse", "coarse as drawn", from_teacher(labels=Labels("none", coarse=True)), params),
        main_row("auto", "auto-labels", from_teacher(labels=Labels()), params),
        main_row("merged", "auto-labels + coarse", from_teacher(labels=Labels(coarse=True)), params),
    ]
    comparisons = [
        Comparison("merged", "control", "student > control"),
        Comparison("auto", "control", "auto-labels > control"),
        Comparison("coarse", "control", "coarse > control"),
        Comparison("merged", "coarse", "auto + coarse > coarse as drawn"),
        Comparison("auto", "coarse", "auto > coarse as drawn"),
        Comparison("merged", "auto", "auto + coarse > auto"),
        Comparison("control", "teacher", "control > teacher"),
    ]
    if params.student_train.pseudo.fine_only_epochs:
        training = from_teacher((("pseudo.fine_only_epochs", 0),), Labels(coarse=True))
        rows.append(main_row("no-tail", "auto-labels + coarse, mixed to the end", training, params))
        comparisons.append(Comparison("merged", "no-tail", "fine labels alone at the end > mixed to the end"))
    named = camvid_variant(params)
    variant, _, epochs = named.partition("-")
    title = f"CamVid, variant {variant}" + (f", teacher of {epochs} epochs" if epochs else "")
    name = f"camvid-table-{named}"
    return Ablation(name, title, "pseudo-label", tuple(rows), tuple(comparisons))


# ---------------------------------------------------------------------------------------- rows of several tables


def setting(name: str, scales: tuple[float, ...], *, flip: bool = False, mode: str = "model") -> EvaluationSetting:
    """A way to run a model, by the name of its row."""
    return EvaluationSetting.model_validate({"name": name, "scales": scales, "flip": flip, "mode": mode})


def main_row(name: str, title: str, training: Training | None, params: Params, mode: str | None = None) -> Row:
    """A row that is run in the workspace's main setting."""
    changes = {"name": name} | ({"mode": mode} if mode else {})
    return Row(name, title, training, params.evaluate.settings[0].model_copy(update=changes))


def from_pretraining(kind: str, *changes: tuple[str, Any], labels: Labels | None = None) -> Training:
    """A whole training of a kind of model by the teacher's recipe."""
    return Training("teacher_train", "pretrain", (("model.kind", kind), *changes), labels)


def from_teacher(changes: Changes = (), labels: Labels | None = None) -> Training:
    """A training by the student's recipe."""
    return Training("student_train", "teacher", changes, labels)


def set_name(scales: Iterable[float]) -> str:
    """0.5-1-2."""
    return "-".join(f"{s:g}" for s in scales)


def scale_rows(
    name: str,
    kind: str,
    sets: Iterable[tuple[float, ...]] = SETS,
    *,
    mode: str = "model",
    prefix: str = "",
    told: str = "",
    changes: Changes = (),
) -> list[Row]:
    """One training, run on each set of scales; `prefix` and `told` stand before the rows' names and titles."""
    rows = []
    for scales in sets:
        own = f"{prefix}{name}-{set_name(scales)}"
        title = f"{told}{name}, {{{', '.join(f'{s:g}' for s in scales)}}}"
        rows.append(Row(own, title, from_pretraining(kind, *changes), setting(own, scales, mode=mode)))
    return rows
