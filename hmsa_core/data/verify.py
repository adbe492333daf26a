"""One image of a data set, checked by content: decoded, measured, hashed. Runs in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import holds_train_ids, is_constant, read_image, read_label
from hmsa_core.data.index import Sample
from hmsa_core.data.layout import Found, Refused
from hmsa_core.data.palettes import check_palette
from hmsa_core.data.phash import perceptual_hash
from hmsa_core.data.sampling import find_centroids
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import DecodeError
from hmsa_core.taxonomy import IGNORE, ClassTable

__all__ = ["Checked", "Task", "Verifier"]


@dataclass(frozen=True)
class Task:
    """One image to check, with what an earlier index says about it."""

    found: Found
    role: str
    block: str
    known: Sample | None = None
    known_centroids: NDArray[np.int32] | None = None


@dataclass
class Checked:
    """The sample (None when the image is refused), its centroids, and all refusals."""

    sample: Sample | None
    centroids: NDArray[np.int32] | None = None  # of `learn` images, as `find_centroids` gives them
    refused: list[Refused] = field(default_factory=list)
    reused: bool = False
    decoded: int = 0


def _same_form(old: str, new: str) -> bool:
    """Whether the same bytes still mean the same: a name says what format is expected, and which ids a map holds."""
    return PurePosixPath(old).suffix == PurePosixPath(new).suffix and holds_train_ids(old) == holds_train_ids(new)


@dataclass(frozen=True)
class Verifier:
    """Checks images one by one; picklable, without state."""

    root: Path
    classes: ClassTable
    max_pixels: int
    tile: int
    min_pixels: int

    def __call__(self, task: Task) -> Checked:
        """Check one image and its label maps; every fault becomes a `Refused`, none is raised."""
        found, out = task.found, Checked(None)
        digests = {part: self._digest(found, part, out) for part in ("image", "label", "coarse")}
        if digests["image"] is None or (found.label and digests["label"] is None):
            return out
        old = task.known
        same_image = old is not None and old.image_sha256 == digests["image"] and _same_form(old.image, found.image)
        if same_image and old is not None:
            height, width, phash = old.height, old.width, old.phash
        else:
            image = self._try(found, "image", out, partial(self._image, found))
            if image is None:
                return out
            height, width, phash = image.shape[0], image.shape[1], perceptual_hash(image)
        size = (height, width)
        same_label = (
            same_image
            and old is not None
            and old.label_sha256 == (digests["label"] or "")
            and _same_form(old.label, found.label)
        )
        label_ok = self._label(task, size, out, reuse=same_label)
        if not label_ok:
            return out
        coarse = found.coarse if digests["coarse"] else ""
        same_coarse = (
            same_image
            and old is not None
            and old.coarse_sha256 == (digests["coarse"] or "")
            and _same_form(old.coarse, found.coarse)
        )
        if coarse and not same_coarse:
            drawn = self._try(found, "coarse", out, partial(self._map, coarse, size))
            coarse = coarse if drawn is not None else ""
        out.reused = same_image and same_label and same_coarse
        out.sample = Sample(
            found.name,
            found.image,
            found.label,
            coarse,
            _kind(found.label, coarse),
            found.split,
            task.role,
            found.city,
            found.sequence,
            found.frame,
            task.block,
            height,
            width,
            digests["image"],
            digests["label"] or "",
            (digests["coarse"] or "") if coarse else "",
            phash,
        )
        return out

    def _label(self, task: Task, size: tuple[int, int], out: Checked, *, reuse: bool) -> bool:
        """Check the fine label and find its centroids; whether the image can be used."""
        found = task.found
        if not found.label:
            return True
        wanted = task.role == "learn"
        if reuse and (not wanted or task.known_centroids is not None):
            out.centroids = task.known_centroids if wanted else None
            return True
        label = self._try(found, "label", out, partial(self._map, found.label, size))
        if label is None:
            return False
        if wanted:
            out.centroids = find_centroids(label, self.classes.num_classes, self.tile, min_pixels=self.min_pixels)
        return True

    def _digest(self, found: Found, part: str, out: Checked) -> str | None:
        path = getattr(found, part)
        if not path:
            return None
        try:
            return sha256_file(self.root / path)
        except OSError as error:
            detail = f"cannot be read ({error.strerror})"
            out.refused.append(Refused(found.name, path, part, found.split, "unreadable", detail))
            return None

    def _try(
        self, found: Found, part: str, out: Checked, read: Callable[[], NDArray[np.uint8]]
    ) -> NDArray[np.uint8] | None:
        out.decoded += 1
        try:
            return read()
        except DecodeError as error:
            path = getattr(found, part)
            detail = error.message.removeprefix(f"{self.root / path}: ")
            out.refused.append(Refused(found.name, path, part, found.split, error.reason, detail))
            return None

    def _image(self, found: Found) -> NDArray[np.uint8]:
        image = read_image(self.root / found.image, max_pixels=self.max_pixels)
        if is_constant(image):
            raise DecodeError(f"all pixels are {tuple(int(v) for v in image[0, 0])}", reason="constant")
        return image

    def _map(self, path: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        label = read_label(self.root / path, self.classes, max_pixels=self.max_pixels)
        check_palette(self.root / path, self.classes, max_pixels=self.max_pixels)
        if label.shape != size:
            detail = f"label is {label.shape[1]}x{label.shape[0]}, image is {size[1]}x{size[0]}"
            raise DecodeError(detail, reason="size-mismatch")
        if label[0, 0] == IGNORE and is_constant(label):
            raise DecodeError("no pixel carries a class", reason="empty")
        return label


def _kind(label: str, coarse: str) -> str:
    return "fine" if label else "coarse" if coarse else "unlabelled"
