"""Weight files that mean harm: a pickle that runs a command, and safetensors whose header lies."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any


class Gadget:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _safetensors(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


HOSTILE = {
    "header of 2**39 bytes": struct.pack("<Q", 1 << 39) + b"{}",
    "header longer than the file": struct.pack("<Q", 5000) + b'{"a": 1}',
    "overlapping tensors": _safetensors(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        bytes(12),
    ),
    "shape larger than the data": _safetensors(
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "offsets behind the end": _safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b""),
    "hole": _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "unknown dtype": _safetensors({"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "header that is no JSON": _safetensors(b"{nope", b""),
}
