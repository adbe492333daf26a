"""Receipts: the acknowledgement that one planned shard is whole on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmsa_core.io import sealed
from hmsa_core.io.errors import StoreError
from hmsa_core.labels.store import schema
from hmsa_core.labels.store.plans import ShardPlan

__all__ = ["RECEIPT_FORMAT", "read_receipt", "receipt_path"]

RECEIPT_FORMAT = "hmsa-label-shard"


def receipt_path(store: Path, plan: ShardPlan) -> Path:
    """Where the receipt of a planned shard lies."""
    return store / schema.RECEIPTS / f"{plan.stem}.json"


def read_receipt(store: Path, plan: ShardPlan) -> dict[str, Any]:
    """Receipt of a planned shard; missing, damaged or of another plan is a StoreError."""
    receipt = sealed.read(receipt_path(store, plan))
    if receipt.get("plan_sha256") != plan.digest or receipt.get("version") != schema.VERSION:
        raise StoreError(f"{receipt_path(store, plan)}: belongs to another plan")
    return receipt
