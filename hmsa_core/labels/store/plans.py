"""Which image goes into which shard: append-only, by content, the same for every number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hmsa_core.io.atomic import digest
from hmsa_core.io.errors import ConfigError, InputError

__all__ = ["ShardPlan", "plan_shards"]


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number, its images in order with their content hashes, and the key of what labels them."""

    index: int
    names: tuple[str, ...]
    image_sha256s: tuple[str, ...]
    key: str

    @property
    def stem(self) -> str:
        """File stem of the shard, its sidecar and its receipt."""
        return f"shard-{self.index:05d}"

    @cached_property
    def digest(self) -> str:
        """Digest of the whole plan: a receipt counts only for the plan that it was written for."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` rebuilds the plan."""
        return {
            "index": self.index,
            "names": list(self.names),
            "image_sha256s": list(self.image_sha256s),
            "key": self.key,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardPlan:
        """Rebuild a plan from `to_json`."""
        return cls(value["index"], tuple(value["names"]), tuple(value["image_sha256s"]), value["key"])


def plan_shards(
    existing: Sequence[ShardPlan], images: Iterable[tuple[str, str]], images_per_shard: int, key: str
) -> list[ShardPlan]:
    """Keep the existing plans and append shards for the images that are in none of them.

    Args:
        existing: plans of earlier runs with the same key; never reordered or refilled.
        images: (name, image_sha256) of all images wanted now, in any order.
        images_per_shard: images a new shard holds, >= 1.
        key: digest of all that determines a label (teacher, scales, flip, precision, classes, code).

    Raises:
        ConfigError: an existing plan has another key (changed parameters need a new store).
        InputError: a name occurs twice, or its content changed since it was labelled.
    """
    if images_per_shard < 1:
        raise ConfigError(f"images_per_shard must be at least 1, got {images_per_shard}")
    if any(plan.key != key for plan in existing):
        raise ConfigError(
            "the existing shards were made with other parameters or another teacher", hint="use a new store"
        )
    known = {n: h for plan in existing for n, h in zip(plan.names, plan.image_sha256s, strict=True)}
    new: dict[str, str] = {}
    for name, sha256 in images:
        if name in new:
            raise InputError(f"image name {name!r} occurs twice", hint="names must be unique in a store")
        new[name] = sha256
    for name in sorted(known.keys() & new.keys()):
        if known[name] != new[name]:
            raise InputError(
                f"image {name!r} has changed since it was labelled (sha256 {new[name]}, labelled {known[name]})",
                hint="give it a new name, or label into a new store",
            )
    # Sorted by name: the plan does not depend on the order in which a folder was listed.
    fresh = sorted(new.keys() - known.keys())
    first = 1 + max((plan.index for plan in existing), default=-1)
    return [
        *existing,
        *(
            ShardPlan(
                first + i // images_per_shard,
                names := tuple(fresh[i : i + images_per_shard]),
                tuple(new[n] for n in names),
                key,
            )
            for i in range(0, len(fresh), images_per_shard)
        ),
    ]
