"""What importers and exporters share: safe file names, PNG files, which labels of a store go out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import write_bytes
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.store.format import png_bytes
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy, keep

__all__ = ["IMAGE_ENDING", "Selection", "city_of", "file_ids", "target_path", "write_png"]

IMAGE_ENDING = "_leftImg8bit"  # of Cityscapes' images
_CITYSCAPES_NAME = re.compile(rf"^(?P<city>[^_]+)_\d{{6}}_\d{{6}}(?:{IMAGE_ENDING})?$")


class Selection:
    """Which labels of a store are exported: all that it holds, or those that a policy keeps."""

    def __init__(self, store: LabelStore, policy: ThresholdPolicy | None = None) -> None:
        self.store, self._codes = store, None
        if policy is not None:
            if store.kind != "raw":
                raise ConfigError(f"{store.path}: is thresholded already", hint="leave out the threshold or policy")
            policy.check(store.lineage, store.classes, str(store.path))
            self._codes = policy.codes()

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Label (255 where nothing is kept) and code of one image."""
        label, code = self.store.read(name)
        return (label if self._codes is None else keep(label, code, self._codes)), code


def file_ids(label: NDArray[np.uint8], store: LabelStore) -> NDArray[np.uint8]:
    """The label with the ids that the data set's files hold; ignored pixels get the id that is ignored there."""
    table = np.full(256, store.classes.ignored_id, np.uint8)
    table[: store.classes.num_classes] = store.classes.train_to_id
    return table[label]


def write_png(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an 8-bit PNG, grey or RGB, atomically."""
    write_bytes(path, png_bytes(array))


def target_path(out: Path, folder: str, file: str) -> Path:
    """`out/folder/file`, refused when a name from a store would leave `out`."""
    path = out / folder / file
    if not path.resolve().is_relative_to(out.resolve()) or Path(file).name != file:
        raise InputError(f"image name {file!r} is not a plain file name", hint="rename the image in the store")
    return path


def city_of(name: str) -> str:
    """City of a Cityscapes name (`aachen_000000_000019`, with or without its image's ending), "" for others."""
    match = _CITYSCAPES_NAME.match(name)
    return match["city"] if match else ""
