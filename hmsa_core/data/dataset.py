"""The torch data set of training: crops of an epoch plan.

An item depends on its crop request alone: no global random state, no order of calls, no worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hmsa_core.config import AugmentConfig
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Sample
from hmsa_core.data.plan import CropRequest, EpochPlan
from hmsa_core.data.transforms import CropRandom, JointAugment, pasted_pixels
from hmsa_core.io.errors import InputError
from hmsa_core.io.process import leave_signals_to_parent
from hmsa_core.taxonomy import ClassTable

UInt8 = NDArray[np.uint8]


class LabelReader(Protocol):
    """The methods of a label store that training uses."""

    def read_label(self, name: str) -> UInt8:
        """Return the label of an image, uint8 HxW."""

    def read_human(self, name: str) -> UInt8:
        """Return 1 where a human gave the label (also together with the teacher), else 0; uint8 HxW."""


def init_worker(worker_id: int) -> None:  # noqa: ARG001 - torch calls it with the number
    """Set up a loader process: it ignores SIGTERM and SIGINT, dies with its rank, uses one thread.

    A signal for the whole group must not kill loaders before the rank has saved its state.
    """
    leave_signals_to_parent()
    torch.set_num_threads(1)


class _Cache:
    """Decoded arrays up to a number of bytes; later arrays are not kept."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: dict[tuple[str, str], UInt8] = {}

    def get(self, key: tuple[str, str], read: Callable[[], UInt8]) -> UInt8:
        found = self._kept.get(key)
        if found is None:
            found = read()
            if found.nbytes <= self._left:
                self._left -= found.nbytes
                self._kept[key] = found
        return found


class CropDataset(Dataset[dict[str, Any]]):
    """Crops of a whole run in plan order (`plan.at`). Each file's digest is checked when it is read.

    Items: {"image": uint8 hxwx3 RGB, "label": uint8 hxw, "name": str, "source": "fine" | "pseudo"}, and if the loss
    weighs human pixels, "human": bool hxw, True where a human labelled an auto-labelled crop. Images
    stay uint8 until they are on the device, where `hmsa_core.data.transforms.normalise_batch` normalises them.

    Args:
        plan: the crops.
        root, classes: folder that the samples' paths are relative to, and classes of the label files.
        crop: (height, width) in pixels.
        open_store: opens the thresholded label store of "pseudo" crops, e.g. partial(LabelStore.open, path).
            It is called once in each process that reads from the store.
        pseudo_root: folder of the auto-labelled images; None = `root`.
        long_edge: pixels. The longer side is first resized to this (Mapillary: 2177).
        cache_bytes: memory for decoded images and labels in each process.

    Raises:
        IntegrityError: a file differs from the indexed file.
    """

    def __init__(
        self,
        plan: EpochPlan,
        *,
        root: str | Path,
        classes: ClassTable,
        crop: tuple[int, int],
        augment: AugmentConfig | None = None,
        open_store: Callable[[], LabelReader] | None = None,
        pseudo_root: str | Path | None = None,
        long_edge: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.plan, self.classes = plan, classes
        self._roots = {"fine": Path(root), "pseudo": Path(pseudo_root or root)}
        self._open_store = open_store
        self._opened: tuple[int, LabelReader] | None = None  # (process, store)
        config = augment or AugmentConfig()
        self._augment = {
            "fine": JointAugment(crop, config, None, long_edge),
            "pseudo": JointAugment(crop, config, plan.pseudo_config.colour, long_edge),
        }
        self._by_source = plan.pseudo_config.acts_by_source(config.colour)
        self._cache = _Cache(cache_bytes)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The crop at a position of the run."""
        request = self.plan.at(position)
        image, label, human = self.arrays(request)
        item = {
            "image": torch.from_numpy(image),
            "label": torch.from_numpy(label),
            "name": request.sample.name,
            "source": request.source,
        }
        if self.plan.pseudo_config.human_weight != 1.0:
            item["human"] = torch.from_numpy(human)
        return item

    def arrays(self, request: CropRequest) -> tuple[UInt8, UInt8, NDArray[np.bool_]]:
        """The augmented crop as uint8 hxwx3 and uint8 hxw, and where a human labelled an auto-labelled crop."""
        image, label, human = self._crop(request)
        mix = self.plan.pseudo_config.mix
        if mix == "none" or request.source == "fine":
            return image, label, human
        fine_image, fine_label, _ = self._crop(self.plan.partner(request))
        pasted = pasted_pixels(fine_label, mix, CropRandom(request.seed, 1)) & ~human
        return np.where(pasted[..., None], fine_image, image), np.where(pasted, fine_label, label), human

    def _crop(self, request: CropRequest) -> tuple[UInt8, UInt8, NDArray[np.bool_]]:
        name, source = request.sample.name, request.source
        image, label = self.read(request.sample, source)
        if source == "pseudo" and self._by_source:
            label = np.dstack([label, self._cache.get(("human", name), lambda: self._store().read_human(name))])
        centre = (request.x, request.y) if request.x >= 0 else None
        image, maps = self._augment[source](image, label, centre, CropRandom(request.seed))
        if maps.ndim == 2:
            return image, maps, np.zeros(maps.shape, np.bool_)
        return image, np.ascontiguousarray(maps[..., 0]), maps[..., 1] == 1

    def read(self, sample: Sample, source: str) -> tuple[UInt8, UInt8]:
        """Whole image and label of a sample; label from its file ("fine") or from the store ("pseudo")."""
        root = self._roots[source]
        image = self._cache.get(
            (str(root), sample.image), lambda: read_image(root / sample.image, sha256=sample.image_sha256)
        )
        label = self._cache.get((source, sample.name), lambda: self._read_label(root, sample, source))
        if label.shape != image.shape[:2]:
            raise InputError(
                f"{sample.name}: the {source} label is {label.shape[1]}x{label.shape[0]}, "
                f"the image {image.shape[1]}x{image.shape[0]}"
            )
        return image, label

    def _read_label(self, root: Path, sample: Sample, source: str) -> UInt8:
        if source == "fine":
            return read_label(root / sample.label, self.classes, sha256=sample.label_sha256)
        return self._store().read_label(sample.name)

    def _store(self) -> LabelReader:
        if self._open_store is None:
            raise InputError("an auto-labelled crop is asked for, but no label store is given")
        if self._opened is None or self._opened[0] != os.getpid():
            # Forked processes would share the position of an open file.
            self._opened = (os.getpid(), self._open_store())
        return self._opened[1]
