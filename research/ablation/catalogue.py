"""The ablations. All rows of a table see the same number of images, but for those named `longer`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hmsa_core.io.errors import ConfigError
from hmsa_core.spec import EvaluationSetting
from pipeline.workspace.params import Params
from research.ablation.plan import Ablation, Labels, Row, Training

NAMES = ("scales", "attention", "labels", "reasons", "threshold", "merging", "losses", "pays", "camvid-table")
SETS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
PAIRS = ((0.25, 1.0), (1.0, 2.0))  # with {0.5, 1}: what one more scale brings into an average
Changes = tuple[tuple[str, Any], ...]
Differences = tuple[tuple[str, str], ...]

_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_LOSSES: dict[str, Changes] = {
    "rmi-released": (("loss.main", "rmi"), ("loss.rmi_ignore", "released")),
    "rmi-masked": (("loss.main", "rmi"), ("loss.rmi_ignore", "masked")),
    "bce": (("loss.main", "released_bce"), ("loss.rmi_ignore", "released")),
    "cross-entropy": (("loss.main", "cross_entropy"), ("loss.rmi_ignore", "released")),
}
_MASKED, _RELEASED = _LOSSES["rmi-masked"], _LOSSES["rmi-released"]


def make_ablation(name: str, params: Params) -> Ablation:
    """An ablation as the workspace of `params` runs it.

    Tables of another profile than demo carry its name (of CamVid the variant's, too): their figures are others.

    Raises:
        ConfigError: an unknown name, or an ablation that the profile cannot run.
    """
    makers = {
        "scales": _scales,
        "attention": _attention,
        "labels": _labels,
        "reasons": _reasons,
        "threshold": _threshold,
        "merging": _merging,
        "losses": _losses,
        "pays": _pays,
    }
    if name == "camvid-table":
        return _camvid(params)
    if name not in makers:
        raise ConfigError(f"unknown ablation {name!r}: choose one of {', '.join(NAMES)}")
    variant = f"-{camvid_variant(params)}" if params.profile == "camvid" else ""
    suffix = "" if params.profile == "demo" else f"-{params.profile}{variant.replace('-default', '')}"
    return replace(makers[name](params), name=f"{name}{suffix}")


def setting(name: str, scales: tuple[float, ...], *, mode: str = "model") -> EvaluationSetting:
    """A way to run a model without flip, by the name of its row."""
    return EvaluationSetting.model_validate({"name": name, "scales": scales, "flip": False, "mode": mode})


def main_row(name: str, training: Training | None, params: Params, mode: str | None = None) -> Row:
    """A row that is run in the workspace's main setting."""
    changes = {"name": name} | ({"mode": mode} if mode else {})
    return Row(name, training, params.evaluate.settings[0].model_copy(update=changes))


def from_pretraining(kind: str, *changes: tuple[str, Any], labels: Labels | None = None) -> Training:
    """A whole training of a kind of model by the teacher's recipe."""
    return Training("teacher_train", "pretrain", (("model.kind", kind), *changes), labels)


def from_teacher(changes: Changes = (), labels: Labels | None = None) -> Training:
    """A training by the student's recipe."""
    return Training("student_train", "teacher", changes, labels)


def scale_rows(
    name: str, kind: str, sets: Iterable[tuple[float, ...]] = SETS, *, mode: str = "model", changes: Changes = ()
) -> list[Row]:
    """One training, run on each set of scales: rows such as NAME-0.5-1-2."""
    named = {f"{name}-{'-'.join(f'{s:g}' for s in scales)}": scales for scales in sets}
    training = from_pretraining(kind, *changes)
    return [Row(own, training, setting(own, scales, mode=mode)) for own, scales in named.items()]


def _scales(params: Params) -> Ablation:  # noqa: ARG001 - the same for every profile
    rows = (
        *scale_rows("single", "single", ((1.0,),), mode="single"),
        *scale_rows("average", "single", (*PAIRS, *SETS), mode="average"),
        *scale_rows("max", "single", mode="max"),
        *scale_rows("hierarchical", "hierarchical", ((1.0,), *SETS)),
        *scale_rows("explicit", "explicit"),
    )
    all_three = "hierarchical-0.5-1-2"
    differences = (
        *((f"hierarchical-{s}", f"average-{s}") for s in ("0.5-1", "0.5-1-2", "0.25-0.5-1-2")),
        *((all_three, f"{other}-0.5-1-2") for other in ("max", "explicit")),
        *((all_three, other) for other in ("single-1", "hierarchical-1", "hierarchical-0.5-1")),
        ("hierarchical-0.25-0.5-1-2", all_three),
        ("average-0.5-1-2", "average-0.5-1"),
        ("average-0.25-0.5-1-2", "average-0.5-1-2"),
        *((f"average-{pair}", "single-1") for pair in ("0.25-1", "0.5-1", "1-2")),
    )
    return Ablation("scales", "Fusing scales", "teacher-pretrain", rows, differences)


def _attention(params: Params) -> Ablation:
    """Attention against averaging with a pretrained trunk, and what could explain the difference.

    `averaged`: the scales of the hierarchical training, averaged. So the way of fusing is told apart from what the
    training makes of each scale. `longer`: a training for one scale that costs as much as the hierarchical one.
    The others change one thing of the hierarchical training.
    """
    rate, factor = params.teacher_train.optimiser.lr, params.teacher_train.optimiser.trunk_factor
    changes: dict[str, Changes] = {
        "joint": (("loss.per_scale_weight", 0.0),),
        "apart": (("loss.per_scale_weight", 1.0),),
        "three": (("model.train_scales", SETS[1]),),
        "head": (("optimiser.lr", 2 * rate), ("optimiser.trunk_factor", factor / 2)),
    }
    as_dear: Changes = (("epochs", round(1.25 * params.teacher_train.epochs)),)  # its crops are run at 0.5x, too
    rows = [
        *scale_rows("single", "single", ((1.0,),), mode="single"),
        *scale_rows("average", "single", SETS[1:], mode="average"),
        *scale_rows("longer", "single", SETS[1:2], mode="average", changes=as_dear),
        *scale_rows("hierarchical", "hierarchical", ((1.0,), *SETS)),
        *scale_rows("averaged", "hierarchical", SETS[1:2], mode="average"),
        *scale_rows("explicit", "explicit", SETS[1:2]),
    ]
    for name, change in changes.items():
        rows += scale_rows(name, "hierarchical", ((1.0,), SETS[1]), changes=change)
        rows += scale_rows(f"{name}-averaged", "hierarchical", SETS[1:2], mode="average", changes=change)
    three = "0.5-1-2"
    differences = (
        *(
            (f"{name}-{three}", f"average-{three}")
            for name in ("hierarchical", "averaged", "longer", "explicit", *changes)
        ),
        *((f"{name}-{three}", f"hierarchical-{three}") for name in changes),
        *((f"hierarchical-{three}", f"{other}-{three}") for other in ("averaged", "longer")),
        ("single-1", "hierarchical-1"),
        *((f"{name}-0.25-{three}", f"{name}-{three}") for name in ("hierarchical", "average")),
        (f"hierarchical-0.25-{three}", f"average-0.25-{three}"),
        (f"hierarchical-{three}", "hierarchical-1"),
        *((f"{name}-{three}", f"{name}-averaged-{three}") for name in changes),
    )
    return Ablation("attention", "Attention with a pretrained trunk", "teacher-pretrain", tuple(rows), differences)


def _labels(params: Params) -> Ablation:
    """The paper's table, and where the labels of the other half come from.

    Without attention the model is trained on a single scale and its scales are averaged. The rows without
    auto-labels see fine labels only; the paper's own baseline sees human coarse labels, which is row `coarse`.
    Rows with another half of labels treat its ignored pixels as the student's recipe does (table losses).
    """

    def row(name: str, kind: str, labels: Labels | None = None) -> Row:
        ignored = (("loss.rmi_ignore", params.student_train.loss.rmi_ignore),) if labels else ()
        training = from_pretraining(kind, *ignored, labels=labels)
        return main_row(name, training, params, "average" if kind == "single" else None)

    rows = (
        row("baseline", "single"),
        row("attention", "hierarchical"),
        row("auto", "single", Labels()),
        row("both", "hierarchical", Labels()),
        row("coarse", "hierarchical", Labels("none", coarse=True)),
        row("both-coarse", "hierarchical", Labels(coarse=True)),
    )
    differences = (
        *((name, "baseline") for name in ("attention", "auto", "both")),
        *(("both", name) for name in ("attention", "auto", "coarse")),
        *(("both-coarse", name) for name in ("coarse", "both")),
    )
    return Ablation("labels", "Attention and labels", "pseudo-label", rows, differences)


def _threshold(params: Params) -> Ablation:
    labels = {f"t{t:g}": Labels(t) for t in _THRESHOLDS} | {"policy": Labels()}
    rows = (
        main_row("control", from_teacher(), params),
        *(main_row(name, from_teacher(labels=one), params) for name, one in labels.items()),
    )
    against_control = (("policy", "control"), ("t0.9", "control"), ("t0", "control"))
    differences = (*(("policy", f"t{t:g}") for t in _THRESHOLDS), *against_control)
    return Ablation("threshold", "Thresholds", "pseudo-label", rows, differences)


def _losses(params: Params) -> Ablation:
    """Loss on thresholded masks at three shares of ignored pixels; mixing, colour, a tail; the auxiliary loss."""
    auto, merged = Labels(), Labels(coarse=True)
    trainings = {
        f"{loss}-{100 * share:.0f}": from_teacher(changes, Labels(ignored=share))
        for share in (0.1, 0.3, 0.6)
        for loss, changes in _LOSSES.items()
    }
    # What the profile's student learns from: few pixels are ignored there.
    trainings |= {f"{loss}-merged": from_teacher(changes, merged) for loss, changes in _LOSSES.items()}
    one_change: dict[str, tuple[str, Any]] = {
        "mix-cutmix-merged": ("pseudo.mix", "cutmix"),
        "mix-classmix-merged": ("pseudo.mix", "classmix"),
        "colour-0-merged": ("pseudo.colour", 0.0),
        "colour-100-merged": ("pseudo.colour", 1.0),
    }
    # A recipe that ends on fine labels has that end in every row; camvid-table has one without.
    if not params.student_train.pseudo.fine_only_epochs:
        one_change["tail-merged"] = ("pseudo.fine_only_epochs", max(1, params.student_train.epochs // 6))
    trainings |= {name: from_teacher((*_MASKED, change), merged) for name, change in one_change.items()}
    for mix in ("none", "cutmix", "classmix"):
        trainings[f"mix-{mix}"] = from_teacher((*_RELEASED, ("pseudo.mix", mix)), auto)
    for colour in (0.5, 1.0):
        trainings[f"colour-{100 * colour:.0f}"] = from_teacher((*_RELEASED, ("pseudo.colour", colour)), auto)
    trainings["aux-cross-entropy"] = from_pretraining("hierarchical", ("loss.aux", "cross_entropy"))
    trainings["aux-released-rmi"] = from_pretraining("hierarchical", ("loss.aux", "rmi"))
    others = [loss for loss in _LOSSES if loss != "rmi-masked"]
    differences = (
        *((f"rmi-masked-{end}", f"{loss}-{end}") for end in ("10", "30", "60", "merged") for loss in others),
        *((name, "mix-none") for name in ("mix-cutmix", "mix-classmix", "colour-50", "colour-100")),
        *((name, "rmi-masked-merged") for name in one_change),
        ("aux-cross-entropy", "aux-released-rmi"),
    )
    rows = tuple(main_row(name, training, params) for name, training in trainings.items())
    return Ablation("losses", "Losses and mixing", "pseudo-label", rows, differences)


def _reasons(params: Params) -> Ablation:
    """Tests of the reasons behind `scales` and `labels`; rows without a prefix are those of these tables.

    `narrow`: no enlarged picture is learned from, so 2x should hurt averaging, as the paper has it. `own`: each
    scale has a loss of its own, so the hierarchical model should be as good at {1} alone as the single-scale one.
    `two`, `three`: both kinds of attention are trained on the same scales, so explicit attention should not be better.
    `all-classes`: no threshold, so no class is missing from the auto-labelled half; what is left between it and
    `coarse`, people's polygons, is not owed to missing classes.
    """
    narrow: Changes = (("augment.scale_max", 1.0),)
    own: Changes = (("loss.per_scale_weight", 0.4),)  # the auxiliary loss's weight
    ignored = ("loss.rmi_ignore", params.student_train.loss.rmi_ignore)  # as table labels has it
    labels = {"both": Labels(), "all-classes": Labels(0.0), "coarse": Labels("none", coarse=True)}
    rows = (
        *scale_rows("single", "single", ((1.0,),), mode="single"),
        *scale_rows("average", "single", SETS[:2], mode="average"),
        *scale_rows("hierarchical", "hierarchical", ((1.0,), *SETS[:2])),
        *scale_rows("narrow-single", "single", ((1.0,),), mode="single", changes=narrow),
        *scale_rows("narrow-average", "single", (PAIRS[1], *SETS[:2]), mode="average", changes=narrow),
        *scale_rows("narrow-hierarchical", "hierarchical", SETS[:2], changes=narrow),
        *scale_rows("own-hierarchical", "hierarchical", ((1.0,), *SETS[:2]), changes=own),
        *scale_rows("explicit", "explicit", SETS[:2]),
        *scale_rows("two-explicit", "explicit", SETS[:1], changes=(("model.train_scales", SETS[0]),)),
        *scale_rows("three-hierarchical", "hierarchical", SETS[:2], changes=(("model.train_scales", SETS[1]),)),
        main_row("attention", from_pretraining("hierarchical"), params),
        *(
            main_row(name, from_pretraining("hierarchical", ignored, labels=one), params)
            for name, one in labels.items()
        ),
    )
    differences = (
        ("narrow-average-0.5-1-2", "narrow-average-0.5-1"),
        ("narrow-average-1-2", "narrow-single-1"),
        ("narrow-hierarchical-0.5-1-2", "narrow-hierarchical-0.5-1"),
        ("narrow-average-0.5-1", "narrow-single-1"),
        ("narrow-hierarchical-0.5-1", "narrow-single-1"),
        *((f"narrow-hierarchical-{s}", f"narrow-average-{s}") for s in ("0.5-1", "0.5-1-2")),
        *((f"own-hierarchical-{s}", f"hierarchical-{s}") for s in ("1", "0.5-1", "0.5-1-2")),
        ("own-hierarchical-1", "single-1"),
        *((f"own-hierarchical-{s}", f"average-{s}") for s in ("0.5-1", "0.5-1-2")),
        *((f"{kind}hierarchical-0.5-1-2", "explicit-0.5-1-2") for kind in ("", "three-")),
        ("hierarchical-0.5-1", "two-explicit-0.5-1"),
        ("three-hierarchical-0.5-1-2", "hierarchical-0.5-1-2"),
        *((name, "attention") for name in labels),
        *((name, "coarse") for name in ("both", "all-classes")),
        ("all-classes", "both"),
    )
    return Ablation("reasons", "Tests of the reasons", "pseudo-label", rows, differences)


def _merging(params: Params) -> Ablation:
    """What a teacher's labels add to human coarse ones: which of its pixels pass, and who wins a conflict.

    `-human`: a pixel that teacher and human call by two names keeps the human's. Otherwise the profile's default:
    it is ignored, and with it what the teacher finds hard is gone from inside of the polygons. The lower the threshold,
    the less a class is missing outside of them.
    """
    extra = {"policy": Labels(coarse=True)} | {f"t{t:g}": Labels(t, coarse=True) for t in (0.9, 0.5, 0.0)}
    labels: dict[str, Labels | None] = {"control": None, "coarse": Labels("none", coarse=True)}
    for name, one in extra.items():
        labels |= {name: one, f"{name}-human": replace(one, conflict="human")}
    differences = (
        *((name, "control") for name in ("policy", "coarse")),
        *((f"{name}{end}", "coarse") for name in extra for end in ("", "-human")),
        *((name, f"{name}-human") for name in extra),
        *((f"policy{end}", f"{other}{end}") for other in ("t0", "t0.5", "t0.9") for end in ("", "-human")),
    )
    rows = tuple(main_row(name, from_teacher(labels=one), params) for name, one in labels.items())
    return Ablation("merging", "Auto-labels beside human polygons", "pseudo-label", rows, differences)


def camvid_variant(params: Params) -> str:
    """The variant of CamVid's splits, with the teacher's epochs where they are not the profile's: "default-1280".

    Where other networks label: "default-adopted".
    """
    teacher, variant = params.teacher_train, getattr(params.data.target, "variant", None) or "default"
    return named_variant(variant, teacher.epochs, is_adopted=teacher.skip)


def named_variant(variant: str, epochs: int | None, *, is_adopted: bool) -> str:
    """The name of a variant and a teacher's epochs (None = the profile's), or of one whose teacher is adopted."""
    if is_adopted:
        return f"{variant}-adopted"
    return variant if epochs in (None, Params.of_profile("camvid").teacher_train.epochs) else f"{variant}-{epochs}"


def _camvid(params: Params) -> Ablation:
    if params.profile != "camvid":
        raise ConfigError(
            f"camvid-table is for workspaces of profile camvid, this one has profile {params.profile}",
            hint="python -m research.ablate camvid-table --prepare --workspace workspaces/camvid",
        )
    coarse, merged = Labels("none", coarse=True), Labels(coarse=True)
    trainings: dict[str, Training | None] = {
        "teacher": None,
        "control": from_teacher(),
        "coarse": from_teacher(labels=coarse),
        "auto": from_teacher(labels=Labels()),
        "merged": from_teacher(labels=merged),
    }
    differences: Differences = (
        *((name, "control") for name in ("merged", "auto", "coarse")),
        *((name, "coarse") for name in ("merged", "auto")),
        ("merged", "auto"),
        ("control", "teacher"),
    )
    if params.student_train.pseudo.fine_only_epochs:
        trainings["no-tail"] = from_teacher((("pseudo.fine_only_epochs", 0),), merged)
        differences = (*differences, ("merged", "no-tail"))
    rows = tuple(main_row(name, training, params) for name, training in trainings.items())
    name = f"camvid-table-{camvid_variant(params)}"
    return Ablation(name, "CamVid", "pseudo-label", rows, differences)


_PLAIN = {"t0": 0.0, "t0.5": 0.5, "t0.9": 0.9, "t0.95": 0.95}
_MEASURED = {"teach": "teach", "policy": "policy"}
_MIXED, _EVEN = ("pseudo.mix", "classmix"), ("pseudo.share", 0.5)
_LEVERS: dict[str, Changes] = {  # changes of a student that learns from all of the teacher's pixels
    "classmix": (_MIXED,),
    "share": (_EVEN,),
    "share+classmix": (_EVEN, _MIXED),
}
_TRUTH = "ceiling"  # folder of true labels of unlabelled images, below the data set's root


def _pays(params: Params) -> Ablation:
    """What auto-labels bring of what true labels of the same images would bring: control, ceiling, policies."""
    # A policy of the pixels outside of polygons says nothing of all pixels.
    measured = _MEASURED if params.calibrate.region == "all" else {}
    taught = [*measured, *_PLAIN]
    thresholds: dict[str, Any] = {"truth": "truth", **measured, **_PLAIN}
    kinds = {name: Labels(threshold, only=_TRUTH) for name, threshold in thresholds.items()}
    drawn: dict[str, Any] = {"coarse": "none", "coarse+t0": 0.0} | {f"coarse+{name}": name for name in _MEASURED}
    extra = {name: Labels(threshold, True, only=_TRUTH) for name, threshold in drawn.items()}
    extra["coarse+t0-human"] = replace(extra["coarse+t0"], conflict="human")  # otherwise the profile's rule
    kinds |= extra
    trainings: dict[str, Training | None] = {"teacher": None, "control": from_teacher()}
    trainings |= {name: from_teacher(labels=labels) for name, labels in kinds.items()}
    trainings |= {name: from_teacher(changes, kinds["t0"]) for name, changes in _LEVERS.items()}
    longer = (("epochs", 2 * params.student_train.epochs),)
    trainings |= {"longer-control": from_teacher(longer), "longer-t0": from_teacher(longer, kinds["t0"])}
    # The teacher's own training with auto-labels in it: nothing is inherited from its errors.
    fresh = {"control": None, "truth": kinds["truth"], "t0": kinds["t0"]}
    trainings |= {f"fresh-{name}": Training("teacher_train", "pretrain", (), labels) for name, labels in fresh.items()}
    rows = tuple(main_row(name, training, params) for name, training in trainings.items())
    differences: Differences = (
        *((name, "control") for name in ("truth", *_LEVERS, *taught, *extra)),
        *((f"fresh-{name}", "fresh-control") for name in ("truth", "t0")),
        *((name, "t0") for name in _LEVERS),
        ("longer-t0", "longer-control"),
        *((name, plain) for name in measured for plain in _PLAIN),
        *((("teach", "policy"),) if measured else ()),
        *((name, "coarse") for name in [*extra][1:]),
        ("coarse+t0-human", "coarse+t0"),
        ("control", "teacher"),
    )
    return Ablation("pays", "What auto-labels pay", "pseudo-label", rows, differences, ceiling="truth")
