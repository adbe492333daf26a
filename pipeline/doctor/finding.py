"""One line of what `autolabel doctor` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ok, warning or broken, in a line, with what mends it."""

    name: str
    state: str  # "ok" | "warning" | "broken"
    text: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """As a JSON object."""
        return asdict(self)
