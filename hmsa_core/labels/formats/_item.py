"""What a format writes: the images of an export and what is known of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from hmsa_core.taxonomy import IGNORE, ClassTable

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One image of an export."""

    name: str
    label: Labels  # trainIds, 255 = ignore
    code: Labels  # codes of confidence
    file: str = ""  # name of its photograph; "" in a format without `read`
    picture: bytes = b""


@dataclass(frozen=True)
class About:
    """What is exported."""

    store: LabelStore
    policy: ThresholdPolicy | None
    format: str
    labels: str  # which labels they are, in 16 hex digits
    names: list[str]
    whole: bool  # the names are all that the store has

    @property
    def classes(self) -> ClassTable:
        """The store's class table."""
        return self.store.classes

    def colour(self, class_id: int) -> str:
        """As #rrggbb."""
        return "#" + bytes(self.classes.colours[class_id]).hex()

    def ids(self, label: Labels) -> Labels:
        """Ids that the data set's files hold; ignored pixels get the id that is ignored there."""
        table = np.full(256, self.classes.ignored_id, np.uint8)
        table[: self.classes.num_classes] = self.classes.train_to_id
        return table[label]

    def check_folder(self, out: Path) -> None:
        """Refuse a file in the place of the folder that is to be written."""
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out}: is a file, {self.format} are written into a folder", hint="give a folder")

    def facts(self) -> dict[str, str]:
        """What has to be the same where an earlier export is brought up to date."""
        policy = self.store.manifest["policy"] or {}
        thresholds = "all" if self.policy is None else self.policy.digest
        return {
            "format": self.format,
            "version": "1",
            "suffix": "gtCoarse",
            "kept": thresholds if self.store.kind == "raw" else str(policy.get("digest", "as stored")),
            "labels": digest({"lineage": self.store.lineage, "classes": self.classes.digest()}),
        }


def shifted(label: Labels) -> Labels:
    """Labels with 0 where they are ignored: trainId + 1."""
    return np.where(label == IGNORE, np.uint8(0), label + np.uint8(1))
