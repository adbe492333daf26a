"""Options of a model: typed, checked, complete enough to build the same model again from a checkpoint's JSON."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from hmsa_core.config import scales_fault
from hmsa_core.io.errors import ConfigError

Kind = Literal["hierarchical", "explicit", "average", "max", "single"]
KINDS: tuple[str, ...] = ("hierarchical", "explicit", "average", "max", "single")
_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "head": ("released", "paper"),
    "context": ("ocr", "aspp", "psp", "none"),
    "top_attention": ("skip", "released"),
}


@dataclass(frozen=True)
class ModelOptions:
    """Everything `build` can be told. None of the widths means the trunk's own default."""

    kind: Kind
    trunk: str
    num_classes: int
    head: Literal["released", "paper"] = "released"  # 1x1, or the paper's 3x3-3x3-1x1
    context: Literal["ocr", "aspp", "psp", "none"] | None = None  # what stands between trunk and heads
    ocr_mid: int | None = None  # channels of the OCR block
    ocr_key: int | None = None  # channels of its object attention
    attention_channels: int | None = None  # hidden channels of the attention head and of the paper's head
    dropout: float = 0.05  # of whole channels, behind the OCR block
    top_attention: Literal["skip", "released"] = "skip"  # run the highest scale's attention head, used or not
    low_scale: float = 0.5  # the second training scale beside 1.0
    train_scales: tuple[float, ...] | None = None  # hierarchical: (low, 1); explicit: (low, 1, 2); others: (1,)
    drop_path: float = 0.0  # stochastic depth of the trunk in training (Huang et al. 2016)
    activation_checkpointing: bool = False  # trade time for memory in training; results do not change

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"model option {name} = {value!r}: choose one of {', '.join(allowed)}")
        for name in ("num_classes", "ocr_mid", "ocr_key", "attention_channels"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"model option {name} = {value!r}: give a whole number of at least 1")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"model option {name} = {getattr(self, name)!r}: give a number in [0, 1)")
        if not 0.0 < self.low_scale < 1.0:
            raise ConfigError(f"model option low_scale = {self.low_scale!r}: give a number in (0, 1)")
        if self.train_scales is not None and (fault := scales_fault(self.train_scales)):
            raise ConfigError(f"model option train_scales = {self.train_scales}: {fault}")

    @property
    def has_attention(self) -> bool:
        """Whether the model has an attention head."""
        return self.kind in ("hierarchical", "explicit")

    @property
    def training_scales(self) -> tuple[float, ...]:
        """Scales of the training pass, ascending. Average and max are trained as the single scale they share."""
        if not self.has_attention:
            return (1.0,)
        if self.train_scales is not None:
            return tuple(sorted(self.train_scales))
        return (self.low_scale, 1.0) if self.kind == "hierarchical" else (self.low_scale, 1.0, 2.0)

    def as_kind(self, kind: str) -> ModelOptions:
        """Return the same options under another fusion kind."""
        return replace(self, kind=kind)  # type: ignore[arg-type]  # checked in __post_init__

    def to_json(self) -> dict[str, Any]:
        """Options other than kind, trunk and class count, for a checkpoint's JSON."""
        left_out = ("kind", "trunk", "num_classes", "activation_checkpointing")  # the last one is the machine's
        return {key: value for key, value in asdict(self).items() if key not in left_out}


def make_options(kind: str, trunk: str, num_classes: int, given: dict[str, Any]) -> ModelOptions:
    """Check option names (a typo names its nearest valid one) and values."""
    known = [field.name for field in fields(ModelOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[3:])}"
            raise ConfigError(f"unknown model option {name!r}: {meant}")
    values = dict(given)
    if values.get("train_scales") is not None:
        values["train_scales"] = tuple(float(scale) for scale in values["train_scales"])
    return ModelOptions(kind=kind, trunk=trunk, num_classes=num_classes, **values)  # type: ignore[arg-type]
