"""What a plan says about the data: one line each, with the cure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hmsa_core.io.errors import InputError

MOST_BAD = 0.05  # share of files; more stop the plan, as `data.target.max_bad` stops `prepare`


@dataclass
class Findings:
    """Lines about the data that do not stop the plan."""

    notes: list[str] = field(default_factory=list)

    def note(self, text: str, cure: str = "") -> None:
        """Keep a line and its cure."""
        self.notes.append(f"{text}: {cure}" if cure else text)

    def count(self, bad: int, total: int, text: str, cure: str) -> None:
        """A note while few files are wrong; InputError: more than `MOST_BAD` of them are."""
        if bad > MOST_BAD * total:
            raise InputError(text, hint=cure)
        if bad:
            self.note(text, cure)


def few(names: list[str]) -> str:
    """The first two of some names."""
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
