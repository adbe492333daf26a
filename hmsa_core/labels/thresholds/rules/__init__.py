"""Rules that choose thresholds, one file each: `calibrate.rule` names the file.

A rule is a module of this folder with a function `choose(curves, config) -> Choice` (thresholds/choice.py). A new file
is found by its name; nothing else is edited. Overrides, figures and warnings of a policy are the same for every rule.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.thresholds.choice import Choice
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.settings import CalibrateConfig, rule_names

__all__ = ["find_rule"]


def find_rule(name: str) -> Callable[[Curves, CalibrateConfig], Choice]:
    """The function of a rule; an unknown name is a ConfigError that lists the known ones."""
    if name not in rule_names():
        raise ConfigError(f"no threshold rule {name!r}", hint=f"one of {', '.join(rule_names())}")
    rule: Callable[[Curves, CalibrateConfig], Choice] = importlib.import_module(f"{__name__}.{name}").choose
    return rule
