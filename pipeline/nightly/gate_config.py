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

    enabled: bool = Field(True, description="false = report only, never promote")
    alpha: float = Field(
        0.05,
        gt=0.0,
        lt=0.5,
        description="one-sided error probability: of the gain over all looks, of each guard for a candidate",
    )
    min_gain: float = Field(0.0, ge=-1.0, le=1.0, description="mean IoU; the gain's lower bound must exceed it")
    seed_sd: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="mean IoU; spread between trainings of one recipe; null = from A/A trainings"
    )
    min_aa_runs: int = Field(3, ge=2, description="A/A trainings before that spread counts as known")
    class_allowance: Allowance = Field(0.02, description="IoU that a class may lose")
    class_allowances: dict[str, Allowance] = Field(
        default_factory=dict, description="the same for single classes, by name"
    )
    min_blocks: int = Field(
        10, ge=2, description="blocks of the report set; and blocks that show a class, or it is not judged"
    )
    veto_recall: Names = Field(
        ("person", "rider", "pedestrian", "bicyclist"), description="classes whose recall may not fall"
    )
    recall_allowance: Share = Field(0.01, description="recall that such a class may lose")
    champion_allowance: Share = Field(0.01, description="mean IoU below the pinned reference champion")
    draws: int = Field(2000, ge=200, description="bootstrap draws of blocks")
    power: float = Field(0.8, gt=0.5, lt=1.0, description="for the smallest gain that could have been seen")
