"""Columns, names and limits of the label store (format version 1; docs/label-store.md explains each)."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

__all__ = [
    "FORMAT",
    "KEPT",
    "MANIFEST",
    "RECEIPTS",
    "SIDECAR",
    "STATISTICS",
    "VERSION",
    "Kind",
    "image_table_schema",
    "kept_schema",
    "shard_schema",
    "sidecar_schema",
    "totals_schema",
]

FORMAT = "hmsa-label-store"
VERSION = 1
MANIFEST = "manifest.json"
RECEIPTS = "receipts"
SIDECAR = "sidecar"
LOCKS = ".locks"
KEPT = "kept"
STATISTICS = (KEPT, "totals", "images")  # consolidated from the sidecars; named by the digest of their sources

Kind = Literal["raw", "thresholded"]

SOURCES = {"none": 0, "teacher": 1, "human": 2, "both": 3}  # column `source` of a thresholded store

_TEXT = [("name", pa.string()), ("city", pa.string()), ("image_path", pa.string()), ("coarse_path", pa.string())]
_SIZE = [("height", pa.int32()), ("width", pa.int32())]


def _schema(columns: list[tuple[str, pa.DataType]], metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
    return pa.schema([pa.field(n, t, nullable=False) for n, t in columns], metadata=metadata)


def payload_columns(kind: Kind) -> tuple[str, ...]:
    """Names of the columns that hold images."""
    return ("label", "confidence") if kind == "raw" else ("label", "confidence", "source")


def shard_schema(kind: Kind, metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
    """One row an image; images as bytes of a standard file format."""
    images = payload_columns(kind)
    digests = [("image_sha256", pa.string()), *((f"{c}_sha256", pa.string()) for c in images)]
    return _schema([*_TEXT, *_SIZE, *((c, pa.binary()) for c in images), *digests], metadata)


def sidecar_schema() -> pa.Schema:
    """Sparse histogram of one shard's images: pixels of a class and a code under a human class (255 = none)."""
    return _schema(
        [
            ("name", pa.string()),
            ("row", pa.uint32()),
            ("class", pa.uint8()),
            ("human", pa.uint8()),
            ("code", pa.uint8()),
            ("pixels", pa.uint32()),
        ]
    )


def image_table_schema() -> pa.Schema:
    """Where each image lies and what is known of it."""
    return _schema([*_TEXT, *_SIZE, ("image_sha256", pa.string()), ("shard", pa.uint32()), ("row", pa.uint32())])


def totals_schema() -> pa.Schema:
    """Histogram summed over the images of a city."""
    return _schema(
        [
            ("city", pa.string()),
            ("class", pa.uint8()),
            ("human", pa.uint8()),
            ("code", pa.uint8()),
            ("pixels", pa.int64()),
        ]
    )


def kept_schema() -> pa.Schema:
    """`kKKK` = pixels of `class` with code >= KKK in image number `image` (order of the manifest)."""
    codes = [(f"k{code:03d}", pa.uint32()) for code in range(256)]
    return _schema([("image", pa.uint32()), ("class", pa.uint8()), *codes])
