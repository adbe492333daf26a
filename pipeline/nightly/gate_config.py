"""When the gate promotes: the section `evaluate.gate` of the parameters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from hmsa_core.config import Section

__all__ = ["GateConfig"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Allowance = Annotated[float, Field(gt=0.0, le=1.0)]  # no image can show that nothing at all was lost
Names = Annotated[tuple[str, ...], Strict(False)]


class GateConfig(Section):
    """When a student is promoted. IoU and recall are shares (0.01 = one point)."""

    enabled: bool = True  # False: never promote, only report
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05  # one-sided: gain over all looks, guards for each candidate
    min_gain: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0  # mean IoU; the lower bound must exceed it
    seed_sd: Annotated[float, Field(ge=0.0)] | None = None  # of one training's mean IoU; None = from A/A runs
    min_aa_runs: Annotated[int, Field(ge=2)] = 3  # A/A trainings before a seed variance counts as known
    class_allowance: Allowance = 0.02  # IoU a class may lose
    class_allowances: dict[str, Allowance] = Field(default_factory=dict)  # by class name
    min_blocks: Annotated[int, Field(ge=2)] = 10  # blocks judged on; and that show a class, or it is not judged
    veto_recall: Names = ("person", "rider", "pedestrian", "bicyclist")
    recall_allowance: Share = 0.01
    champion_allowance: Share = 0.01  # mean IoU below the pinned reference champion
    draws: Annotated[int, Field(ge=200)] = 2000
    power: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.8  # for the smallest gain that could have been seen
