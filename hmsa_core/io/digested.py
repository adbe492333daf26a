"""JSON objects that carry a digest of themselves under `digest`: commit points of checkpoints and training states.

(Label stores have a stricter form, whose bytes other languages can check: `labels.sealed`.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hmsa_core.io.atomic import canonical_json, digest

__all__ = ["take_digest", "with_digest"]


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the SHA-256 of the object's canonical JSON under `digest`."""
    return dict(value) | {"digest": _digest(value)}


def take_digest(value: dict[str, Any]) -> tuple[Any, str]:
    """Take `digest` out of an object that was read; return what it says (None = it has none) and what it should say."""
    recorded = value.pop("digest", None)
    return recorded, _digest(value)


def _digest(value: Mapping[str, Any]) -> str:
    # As it is read back: JSON turns tuples into lists and all keys into text, which sort otherwise.
    return digest(json.loads(canonical_json(value)))
