"""The ablations. All rows of a table see the same number of images; what differs is in the row's own line."""

from __future__ import annotations

from hmsa_core.io.errors import ConfigError
from pipeline.params import Params
from research.ablation.merging import make_merging
from research.ablation.plan import Ablation, Comparison, Labels, Row, Training
from research.ablation.reasons import make_reasons
from research.ablation.rows import (
    PAIRS,
    SETS,
    Changes,
    from_pretraining,
    from_teacher,
    main_row,
    scale_rows,
    set_name,
    setting,
)

__all__ = ["NAMES", "camvid_folder", "camvid_variant", "make_ablation", "named_variant"]

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
        "reasons": make_reasons,
        "threshold": _threshold,
        "merging": make_merging,
        "losses": _losses,
    }
    if name == "camvid-table":
        return _camvid(params)
    if name not in makers:
        raise ConfigError(f"unknown ablation {name!r}: choose one of {', '.join(NAMES)}")
    profile = camvid_folder(camvid_variant(params)) if params.profile == "camvid" else params.profile
    suffix = "" if profile == "demo" else f"-{profile}"
    return makers[name](f"{name}{suffix}", f"make ablation-{name}", params)


# ------------------------------------------------------------------------------------------------ scales


def _scales(name: str, command: str, params: Params) -> Ablation:  # noqa: ARG001 - the same for every profile
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
    return Ablation(name, "Fusing scales", "teacher-pretrain", tuple(rows), _scale_claims(), command)


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


def _labels(name: str, command: str, params: Params) -> Ablation:
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
    return Ablation(name, "Attention and labels", "pseudo-label", rows, comparisons, command)


# --------------------------------------------------------------------------------------------- threshold


def _threshold(name: str, command: str, params: Params) -> Ablation:
    rows = [main_row("control", "fine labels only", from_teacher(), params)]
    rows += [main_row(f"t{t:g}", f"threshold {t:g}", from_teacher(labels=Labels(t)), params) for t in _THRESHOLDS]
    rows.append(main_row("policy", "policy (measured)", from_teacher(labels=Labels()), params))
    comparisons = (
        *(Comparison("policy", f"t{t:g}", f"policy > {t:g}") for t in _THRESHOLDS),
        Comparison("policy", "control", "auto-labels > fine labels only"),
        Comparison("t0.9", "control", "auto-labels of 0.9 > fine labels only"),
    )
    return Ablation(name, "Thresholds", "pseudo-label", tuple(rows), comparisons, command)


# ------------------------------------------------------------------------------------------------ losses


def _losses(name: str, command: str, params: Params) -> Ablation:
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
    return Ablation(name, "Losses and mixing", "pseudo-label", tuple(rows), comparisons, command)


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
            hint="autolabel ablate camvid-table --prepare --workspace workspaces/camvid",
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
    return Ablation(name, title, "pseudo-label", tuple(rows), tuple(comparisons), "make camvid-table")
