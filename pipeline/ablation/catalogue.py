"""The ablations. All rows of a table see the same number of images; what differs is in the row's own line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hmsa_core.engine.spec import EvaluationSetting
from hmsa_core.errors import ConfigError
from pipeline.ablation.plan import Ablation, Comparison, Labels, Row, Training
from pipeline.params import Params

__all__ = ["NAMES", "make_ablation"]

NAMES = ("scales", "reasons", "labels", "threshold", "losses", "camvid-table")
_SETS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
_PAIRS = ((0.25, 1.0), (1.0, 2.0))  # with {0.5, 1}: what one more scale brings into an average
_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_IGNORED = (0.1, 0.3, 0.6)
_Changes = tuple[tuple[str, Any], ...]
_LOSSES: dict[str, _Changes] = {
    "rmi-released": (("loss.main", "rmi"), ("loss.rmi_ignore", "released")),
    "rmi-masked": (("loss.main", "rmi"), ("loss.rmi_ignore", "masked")),
    # Stated though neither looks at it: rows keep their keys when the profile's form of RMI changes.
    "bce": (("loss.main", "bce"), ("loss.rmi_ignore", "released")),
    "cross-entropy": (("loss.main", "cross_entropy"), ("loss.rmi_ignore", "released")),
}
_MIXES = ("none", "cutmix", "classmix")
_COLOURS = (0.5, 1.0)
_PREFIXES = {"": "", "narrow-": "trained up to 1x: ", "own-": "with a loss at each scale: "}
_OWN_LOSS = 0.4  # of each scale: the auxiliary loss's weight
_HARM = 0.005  # mean IoU; set before the first cell: less than this is no harm


def make_ablation(name: str, params: Params) -> Ablation:
    """An ablation as the workspace of `params` runs it.

    Tables of another profile than demo carry its name: their cells are other files.

    Raises:
        ConfigError: an unknown name, or an ablation that the profile cannot run.
    """
    makers = {"scales": _scales, "reasons": _reasons, "labels": _labels, "threshold": _threshold, "losses": _losses}
    if name == "camvid-table":
        return _camvid(params)
    if name not in makers:
        raise ConfigError(f"unknown ablation {name!r}: choose one of {', '.join(NAMES)}")
    suffix = "" if params.profile == "demo" else f"-{params.profile}"
    return makers[name](f"{name}{suffix}", f"make ablation-{name}", params)


def _setting(name: str, scales: tuple[float, ...], *, flip: bool = False, mode: str = "model") -> EvaluationSetting:
    return EvaluationSetting.model_validate({"name": name, "scales": scales, "flip": flip, "mode": mode})


def _main(name: str, params: Params, mode: str | None = None) -> EvaluationSetting:
    """The workspace's main setting under the row's name."""
    changes = {"name": name} | ({"mode": mode} if mode else {})
    return params.evaluate.settings[0].model_copy(update=changes)


def _kind(kind: str, *changes: tuple[str, Any]) -> Training:
    return Training("teacher_train", "pretrain", (("model.kind", kind), *changes))


def _set_name(scales: Iterable[float]) -> str:
    return "-".join(f"{s:g}" for s in scales)


# ------------------------------------------------------------------------------------------------ scales


def _scales(name: str, command: str, params: Params) -> Ablation:  # noqa: ARG001 - the same for every profile
    rows = [
        Row("single-1", "single scale", _kind("single"), _setting("single-1", (1.0,), mode="single")),
        *_scale_rows("average", "single", (*_PAIRS, *_SETS), mode="average"),
        *_scale_rows("max", "single", mode="max"),
        Row("hierarchical-1", "hierarchical, {1} alone", _kind("hierarchical"), _setting("hierarchical-1", (1.0,))),
        *_scale_rows("hierarchical", "hierarchical"),
        *_scale_rows("explicit", "explicit"),
    ]
    return Ablation(
        name, "Fusing scales", "teacher-pretrain", tuple(rows), _scale_claims(), command
    )


def _scale_rows(
    name: str, kind: str, sets: Iterable[tuple[float, ...]] = _SETS, *, mode: str = "model", prefix: str = "",
    changes: _Changes = (),
) -> list[Row]:  # fmt: skip
    rows = []
    for scales in sets:
        own = f"{prefix}{name}-{_set_name(scales)}"
        title = f"{_PREFIXES[prefix]}{name}, {{{', '.join(f'{s:g}' for s in scales)}}}"
        rows.append(Row(own, title, _kind(kind, *changes), _setting(own, scales, mode=mode)))
    return rows


def _scale_claims() -> tuple[Comparison, ...]:
    two, three, four = (_set_name(s) for s in _SETS)
    return (
        *(Comparison(f"hierarchical-{s}", f"average-{s}", "hierarchical > average") for s in (two, three, four)),
        Comparison(f"hierarchical-{three}", f"max-{three}", "hierarchical > max"),
        Comparison(f"hierarchical-{three}", f"explicit-{three}", "hierarchical > explicit"),
        Comparison(f"hierarchical-{three}", "single-1", "hierarchical > single scale"),
        Comparison(f"hierarchical-{three}", "hierarchical-1", "hierarchical > its own single scale"),
        Comparison(f"hierarchical-{three}", f"hierarchical-{two}", "adding 2x helps hierarchical"),
        Comparison(f"hierarchical-{four}", f"hierarchical-{three}", "adding 0.25x helps hierarchical"),
        *(
            Comparison(f"hierarchical-{more}", f"hierarchical-{less}", f"adding {what} costs hierarchical less than "
                       f"{100 * _HARM:g} points", allowed=_HARM)
            for more, less, what in ((three, two, "2x"), (four, three, "0.25x"))
        ),
        Comparison(f"average-{three}", f"average-{two}", "adding 2x hurts average", hurts=True),
        Comparison(f"average-{four}", f"average-{three}", "adding 0.25x hurts average", hurts=True),
        *(
            Comparison(f"average-{_set_name(pair)}", "single-1", f"adding {other:g}x alone to 1x helps average")
            for other, pair in ((0.25, _PAIRS[0]), (0.5, _SETS[0]), (2.0, _PAIRS[1]))
        ),
    )


# ----------------------------------------------------------------------------------------------- reasons


def _reasons(name: str, command: str, params: Params) -> Ablation:  # noqa: ARG001 - the same for every profile
    """What is thought to lie behind table `scales`, each reason by a training that takes it away.

    `narrow`: no enlarged picture is learned from, so 2x should hurt averaging, as the paper has it. `own`: each
    scale has a loss of its own, so the hierarchical model should be as good at {1} alone as the single-scale one.
    """
    two, three = (_set_name(s) for s in _SETS[:2])
    one_two = _set_name(_PAIRS[1])
    narrow: dict[str, Any] = {"prefix": "narrow-", "changes": (("augment.scale_max", 1.0),)}
    own: dict[str, Any] = {"prefix": "own-", "changes": (("loss.per_scale_weight", _OWN_LOSS),)}
    sets = (_SETS[0], _SETS[1])
    rows = (
        *_scale_rows("single", "single", ((1.0,),), mode="single"),
        *_scale_rows("average", "single", sets, mode="average"),
        *_scale_rows("hierarchical", "hierarchical", ((1.0,), *sets)),
        *_scale_rows("single", "single", ((1.0,),), mode="single", **narrow),
        *_scale_rows("average", "single", (_PAIRS[1], *sets), mode="average", **narrow),
        *_scale_rows("hierarchical", "hierarchical", sets, **narrow),
        *_scale_rows("hierarchical", "hierarchical", ((1.0,), *sets), **own),
    )
    hurts = (("narrow-average-" + three, "narrow-average-" + two, "adding 2x hurts average"),
             ("narrow-average-" + one_two, "narrow-single-1", "adding 2x alone to 1x hurts average"))  # fmt: skip
    helps = (
        ("narrow-hierarchical-" + three, "narrow-average-" + three, "hierarchical > average"),
        ("own-hierarchical-1", "hierarchical-1", "a loss of its own helps {1} alone"),
        ("own-hierarchical-" + two, "hierarchical-" + two, "a loss of its own helps {0.5, 1}"),
        ("own-hierarchical-" + three, "hierarchical-" + three, "a loss of its own helps {0.5, 1, 2}"),
        ("own-hierarchical-1", "single-1", "hierarchical, {1} alone > single scale"),
        ("own-hierarchical-" + two, "average-" + two, "hierarchical > average"),
        ("own-hierarchical-" + three, "average-" + three, "hierarchical > average"),
    )
    comparisons = (*(Comparison(*c, hurts=True) for c in hurts), *(Comparison(*c) for c in helps))
    return Ablation(name, "Fusing scales: tests of the reasons", "teacher-pretrain", rows, comparisons, command)


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
        return Training("teacher_train", "pretrain", (("model.kind", kind), *ignored), labels)

    auto, coarse, merged = Labels(), Labels("none", coarse=True), Labels(coarse=True)
    rows = (
        Row("baseline", "no attention, fine labels", on("single"), _main("baseline", params, "average")),
        Row("attention", "+ attention", on("hierarchical"), _main("attention", params)),
        Row("auto", "+ auto-labels", on("single", auto), _main("auto", params, "average")),
        Row("both", "+ both", on("hierarchical", auto), _main("both", params)),
        Row("coarse", "attention, human coarse labels as drawn", on("hierarchical", coarse), _main("coarse", params)),
        Row("both-coarse", "+ both, coarse labels merged", on("hierarchical", merged), _main("both-coarse", params)),
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


def _student(changes: _Changes = (), labels: Labels | None = None) -> Training:
    return Training("student_train", "teacher", changes, labels)


def _threshold(name: str, command: str, params: Params) -> Ablation:
    rows = [Row("control", "fine labels only", _student(), _main("control", params))]
    rows += [
        Row(f"t{t:g}", f"threshold {t:g}", _student(labels=Labels(t)), _main(f"t{t:g}", params)) for t in _THRESHOLDS
    ]
    rows.append(Row("policy", "policy (measured)", _student(labels=Labels()), _main("policy", params)))
    comparisons = (
        *(Comparison("policy", f"t{t:g}", f"policy > {t:g}") for t in _THRESHOLDS),
        Comparison("policy", "control", "auto-labels > fine labels only"),
    )
    return Ablation(name, "Thresholds", "pseudo-label", tuple(rows), comparisons, command)


# ------------------------------------------------------------------------------------------------ losses


def _losses(name: str, command: str, params: Params) -> Ablation:
    """Loss on thresholded masks at three shares of ignored pixels; mixing and colour; the auxiliary loss."""
    usual = params.student_train.pseudo.colour
    rows = []
    for share in _IGNORED:
        for loss, changes in _LOSSES.items():
            own = f"{loss}-{100 * share:.0f}"
            title = f"{loss}, {100 * share:.0f} % ignored"
            rows.append(Row(own, title, _student(changes, Labels(ignored=share)), _main(own, params)))
    for loss, changes in _LOSSES.items():  # what the profile's student learns from: few pixels are ignored there
        training = _student(changes, Labels(coarse=True))
        rows.append(Row(f"{loss}-merged", f"{loss}, merged labels", training, _main(f"{loss}-merged", params)))
    for mix in _MIXES[1:]:
        training = _student((*_LOSSES["rmi-masked"], ("pseudo.mix", mix)), Labels(coarse=True))
        title = f"mixing: {mix}, rmi-masked, merged labels"
        rows.append(Row(f"mix-{mix}-merged", title, training, _main(f"mix-{mix}-merged", params)))
    for mix in _MIXES:
        training = _student((*_LOSSES["rmi-released"], ("pseudo.mix", mix)), Labels())
        rows.append(Row(f"mix-{mix}", f"mixing: {mix}", training, _main(f"mix-{mix}", params)))
    for colour in _COLOURS:
        own, title = f"colour-{100 * colour:.0f}", f"colour jitter {colour:g} on auto-labelled crops"
        training = _student((*_LOSSES["rmi-released"], ("pseudo.colour", colour)), Labels())
        rows.append(Row(own, title, training, _main(own, params)))
    for aux in ("cross_entropy", "released_rmi"):
        own = f"aux-{aux.replace('_', '-')}"
        training = Training("teacher_train", "pretrain", (("model.kind", "hierarchical"), ("loss.aux", aux)))
        rows.append(Row(own, f"auxiliary loss: {aux}", training, _main(own, params)))
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
        Comparison("aux-cross-entropy", "aux-released-rmi", "auxiliary cross-entropy > auxiliary RMI"),
    )
    return Ablation(name, "Losses and mixing", "pseudo-label", tuple(rows), comparisons, command)


# ------------------------------------------------------------------------------------------------ CamVid


def _camvid(params: Params) -> Ablation:
    if params.profile != "camvid":
        raise ConfigError(
            f"camvid-table is for workspaces of profile camvid, this one has profile {params.profile}",
            hint="autolabel ablate camvid-table --prepare --workspace workspaces/camvid",
        )
    source = params.data.target
    variant = str(getattr(source, "variant", None) or "default")
    rows = (
        Row("teacher", "teacher, as it is", None, _main("teacher", params)),
        Row("control", "control: fine labels only", _student(), _main("control", params)),
        Row("coarse", "coarse as drawn", _student(labels=Labels("none", coarse=True)), _main("coarse", params)),
        Row("auto", "auto-labels", _student(labels=Labels()), _main("auto", params)),
        Row("merged", "auto-labels + coarse", _student(labels=Labels(coarse=True)), _main("merged", params)),
    )
    comparisons = (
        Comparison("merged", "control", "student > control"),
        Comparison("auto", "control", "auto-labels > control"),
        Comparison("coarse", "control", "coarse > control"),
        Comparison("merged", "coarse", "auto + coarse > coarse as drawn"),
        Comparison("merged", "auto", "auto + coarse > auto"),
        Comparison("control", "teacher", "control > teacher"),
    )
    title = f"CamVid, variant {variant}"
    return Ablation(f"camvid-table-{variant}", title, "pseudo-label", rows, comparisons, "make camvid-table")
