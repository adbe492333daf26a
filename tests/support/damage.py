"""Damage to files."""

from pathlib import Path


def flip(path: Path, at: int | None = None, bit: int = 0) -> None:
    """Flip a bit of a file, in its middle or in byte `at`, in a new file: the bytes of the old one may be shared."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1 << bit
    path.unlink()
    path.write_bytes(data)
