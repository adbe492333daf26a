"""From evidence to a policy: count right and wrong pixels, calibrate confidences, let a rule choose thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.thresholds.choice import ClassThreshold, figures
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves, outside_coarse
from hmsa_core.labels.thresholds.policy import PROMISES, WITHHELD, ClassPolicy, ThresholdPolicy
from hmsa_core.labels.thresholds.rules import find_rule
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from hmsa_core.taxonomy import ClassTable

FORMAT, VERSION = "hmsa-calibration-table", 1
# Weight of the prior in pixels. It only decides where a class has (nearly) no pixels of a code: there the
# curve of all classes together is the best guess.
_PRIOR_PIXELS = 50.0


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


def calibration_table(curves: Curves) -> NDArray[np.float64]:
    """P(label is right | class, code) as float64 (C, 256), non-decreasing in the code."""
    total = curves.counts["total"].sum(axis=0).astype(np.float64)
    correct = curves.counts["correct"].sum(axis=0).astype(np.float64)
    everyone = isotonic(correct.sum(axis=0) + 0.5, total.sum(axis=0) + 1.0)
    return np.stack(
        [isotonic(correct[c] + _PRIOR_PIXELS * everyone, total[c] + _PRIOR_PIXELS) for c in range(len(total))]
    )


def isotonic(correct: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing curve of probabilities that is closest to correct / total, weighted by `total`."""
    from scipy.optimize import isotonic_regression  # a second to import, and only this function needs it

    fit: NDArray[np.float64] = isotonic_regression(correct / total, weights=total).x
    return np.clip(fit, 0.0, 1.0)


def load_table(path: str | Path) -> NDArray[np.float64]:
    """Read the table that `save_table` wrote: float64 (C, 256). StoreError: damaged, or of another version."""
    value = sealed.read(Path(path))
    if value.get("format") != FORMAT or value.get("version") != VERSION:
        raise StoreError(
            f"{path}: not a calibration table of version {VERSION}", hint="run calibrate and pseudo-label again"
        )
    classes = ClassTable.from_json(value["class_table"]).classes  # a sealed file sorts names, trainIds do not
    return np.array([value["table"][name] for name in classes], np.float64)


def save_table(path: str | Path, table: NDArray[np.float64], classes: ClassTable, lineage: Mapping[str, Any]) -> str:
    """Write the table as a sealed JSON file, bound to teacher and inference; return its digest."""
    return sealed.write(
        Path(path),
        {
            "format": FORMAT,
            "version": VERSION,
            "class_table": classes.to_json(),
            "binding": binding(lineage),
            "table": {
                name: [round(float(p), 6) for p in row] for name, row in zip(classes.classes, table, strict=True)
            },
        },
    )
