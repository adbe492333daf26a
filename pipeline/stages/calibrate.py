"""calibrate: measure how often the teacher is right on unseen images, by class and confidence; choose thresholds.

Curves (counts), calibration table and policy are three files: a new target precision needs no new inference,
and a new calibration changes no label store.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from hmsa_core.io import atomic
from hmsa_core.io.trees import new_tree
from hmsa_core.labels import StoreStatistics, ThresholdPolicy, calibrate
from hmsa_core.labels.calibration import choose_policy
from hmsa_core.labels.store.codes import EDGE_VALUES, NUM_CODES
from hmsa_core.labels.thresholds.probabilities import save_table
from pipeline.jobs import measure
from pipeline.jobs.measure import PAIRS, Precision
from pipeline.jobs.support import labelling_teacher, record_skip, role_index, warn, write_metrics
from pipeline.report import plots
from pipeline.workspace.workspace import Workspace

STAGE = "calibrate"
OUT = "calibration"


def disk_estimate(ws: Workspace) -> int:
    """Bytes of the calibration images' labels (at most one byte per pixel) and of the curves."""
    pixels = sum(s.height * s.width for s in measure.fine_samples(ws, "calibrate"))
    return pixels + (32 << 20)


def run(ws: Workspace) -> None:
    """Measure and publish calibration/."""
    samples = measure.fine_samples(ws, "calibrate")
    if not samples:
        _record_skip(ws)
        return
    judgement = measure.judge(ws, samples, {"teacher": labelling_teacher(ws)})
    found = measure.measure(ws, STAGE, "calibrate", "calibrate", judgement.names)
    _, table, policy = calibrate(found.judged, config=ws.params.calibrate)
    with new_tree(ws.path(OUT)) as out:
        found.save_curves(out)
        save_table(out / "table.json", table, found.curves.classes, found.curves.lineage)
        atomic.write_json(out / "leaks.json", judgement.to_json())
        np.savez_compressed(buffer := io.BytesIO(), pairs=StoreStatistics.open(found.store.path).pairs())
        atomic.write_bytes(out / PAIRS, buffer.getvalue())
        policy.save(out / "policy.json")
        choose_policy(found.judged, ws.params.calibrate.model_copy(update={"rule": "teach"})).save(out / "teach.json")
    write_metrics(ws, STAGE, _figures(ws, found, policy) | {"left_out": len({k.name for k in judgement.leaks})})
    plots.plot_curves(ws.path(f"plots/{STAGE}-curves.png"), found.judged, title="Calibration images")
    best, target = float(policy.evidence.get("ceiling", 1.0)), ws.params.calibrate.target
    if best < target:
        warn(
            STAGE,
            f"calibrate.target is {100 * target:.1f} %, but all classes together are right at most {100 * best:.1f} % "
            "of the time, whatever the confidence: by errors of the teacher or of the labels. Train the teacher "
            "longer, correct the labels, or set a lower target (docs/thresholds.md)",
        )
    scarce = [e.name for e in policy.entries if "warning" in e.evidence]
    if scarce and ws.params.pseudo_label.threshold == "policy":
        warn(STAGE, f"little of {', '.join(scarce)} is kept (calibration/policy.json says why)")


def _figures(ws: Workspace, found: Precision, policy: ThresholdPolicy) -> dict[str, Any]:
    kept = measure.kept_figures(found.judged, policy, ws.params.calibrate)
    # DVC's metrics want numbers.
    thresholds = {e.name: float(EDGE_VALUES[e.code]) if e.code < NUM_CODES else None for e in policy.entries}
    return {
        "images": len(found.judged.images),
        "blocks": len(found.judged.blocks),
        "region": ws.params.calibrate.region,
        "target": float(policy.evidence["target"]),
        "precision": kept["precision"],
        "coverage": kept["coverage"],
        "class_mean_coverage": kept["class_mean_coverage"],
        "thresholds": thresholds,
        "status": {e.name: e.status for e in policy.entries},
    }


def _record_skip(ws: Workspace) -> None:
    reason = (
        f"no image has the role `calibrate` ({role_index(ws, 'calibrate').name}): nothing can be measured; "
        "pseudo_label.threshold must be a number or a policy file"
    )
    warn(STAGE, reason)
    record_skip(ws, OUT, reason)
    write_metrics(ws, STAGE, {"skipped": reason})
    plots.lines(ws.path(f"plots/{STAGE}-curves.png"), {}, title="No calibration", x="coverage", y="precision")
