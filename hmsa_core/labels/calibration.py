"""From evidence to a policy: count right and wrong pixels, calibrate confidences, let a rule choose thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.thresholds.choice import ClassThreshold, figures
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves, outside_coarse
from hmsa_core.labels.thresholds.policy import PROMISES, WITHHELD, ClassPolicy, ThresholdPolicy
from hmsa_core.labels.thresholds.probabilities import calibration_table
from hmsa_core.labels.thresholds.rules import find_rule
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from hmsa_core.taxonomy import ClassTable


class Calibration(NamedTuple):
    """What `calibrate` finds: counts, P(label is right | class, code) as float64 (C, 256), and thresholds."""

    curves: Curves
    table: NDArray[np.float64]
    policy: ThresholdPolicy


def calibrate(
    evidence: Iterable[CalibrationImage] | Curves,
    classes: ClassTable | None = None,
    *,
    config: CalibrateConfig | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Calibration:
    """Measure how often a teacher is right, and choose the thresholds of a policy from that.

    Args:
        evidence: images that the teacher never learned from, with its labels and the true ones; or their curves.
        classes: class table of the images; not needed with curves.
        config: the rule and its settings; `region` says which pixels of images count.
        lineage: of the label store; it binds the policy to the store's teacher and inference settings.

    Raises:
        InputError: no image, or images without a class table.
        ConfigError: an unknown rule, or an override that names an unknown class or a threshold off the code grid.
    """
    config = config or CalibrateConfig()
    if isinstance(evidence, Curves):
        curves = evidence
    elif classes is None:
        raise InputError("calibration images need their class table")
    else:
        images = outside_coarse(evidence) if config.region == "outside_coarse" else evidence
        curves = Curves.measure(images, classes, config=config, lineage=lineage)
    table = calibration_table(curves)
    return Calibration(curves, table, choose_policy(curves, config, table))


def choose_policy(curves: Curves, config: CalibrateConfig, table: NDArray[np.float64] | None = None) -> ThresholdPolicy:
    """Thresholds by the rule `config.rule`, with overrides by hand on top and the evidence for each class.

    `table` is the calibration table of the curves where it is known already; see `calibrate` for the errors.
    """
    overrides = _overrides(curves.classes, config)
    choice = find_rule(config.rule)(curves, config)
    entries = []
    for c, (name, chosen) in enumerate(zip(curves.classes.classes, choice.thresholds, strict=True)):
        threshold = overrides.get(c, chosen)
        found = figures(curves, c, threshold.code, config.confidence, config.marginal_share)
        found |= {"reason": threshold.reason, **threshold.evidence}
        if found["coverage"] < config.min_coverage:
            share, least = found["coverage"], config.min_coverage
            found["warning"] = f"keeps {share:.1%} of its pixels, less than min_coverage {least:.0%}"
        entries.append(ClassPolicy(name, threshold.code, threshold.status, found))
    return ThresholdPolicy(
        curves.classes,
        tuple(entries),
        table=calibration_table(curves) if table is None else table,
        binding=binding(curves.lineage),
        settings=config.model_dump(mode="json"),
        evidence={
            "target": config.target,
            **choice.evidence,
            "blocks": len(curves.blocks),
            "images": len(curves.images),
            "promises": {entry.status: PROMISES[entry.status] for entry in entries},
            "warnings": [f"{e.name}: {e.evidence['warning']}" for e in entries if "warning" in e.evidence],
        },
    )


def _overrides(classes: ClassTable, config: CalibrateConfig) -> dict[int, ClassThreshold]:
    names = {name.lower(): i for i, name in enumerate(classes.classes)}
    result: dict[int, ClassThreshold] = {}
    for name, threshold in config.overrides.items():
        if name.lower() not in names:
            raise ConfigError(f"overrides: no class {name!r}", hint=f"classes: {', '.join(classes.classes)}")
        code = WITHHELD if threshold == "withheld" else ConfidenceCode().code_for(threshold)
        result[names[name.lower()]] = ClassThreshold(code, "given", f"set by hand to {threshold}", {"cross_fit": None})
    return result
