"""One image of a data set, checked by content: decoded, measured, hashed. Runs in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import Header, holds_train_ids, is_constant, read_header, read_label, read_picture
from hmsa_core.data.found import Found, Refused
from hmsa_core.data.index import Sample
from hmsa_core.data.sampling import find_centroids
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import DecodeError, IntegrityError
from hmsa_core.io.remote import fetched
from hmsa_core.taxonomy import IGNORE, ClassTable

T = TypeVar("T")
# No file says which of the two is right.
TURNED = ", upright by its EXIF rotation: draw the label map upright as well"


@dataclass(frozen=True)
class Task:
    """One image to check, with the results in an earlier index."""

    found: Found
    role: str
    block: str
    known: Sample | None = None
    known_centroids: NDArray[np.int32] | None = None


@dataclass
class Checked:
    """The sample (None when the image is refused), its centroids, and all refusals."""

    sample: Sample | None
    centroids: NDArray[np.int32] | None = None  # of `learn` images, by `find_centroids`
    refused: list[Refused] = field(default_factory=list)
    is_turned: bool = False  # a labelled image that EXIF data rotate


@dataclass(frozen=True)
class Verifier:
    """Check images one by one; picklable, without state."""

    root: Path
    classes: ClassTable
    max_pixels: int
    tile: int
    min_pixels: int

    def __call__(self, task: Task) -> Checked:
        """Check one image and its label maps; each fault becomes a `Refused`, no fault raises."""
        found, old, out = task.found, task.known, Checked(None)
        digests = {part: self._digest(found, part, out) for part in ("image", "label", "coarse")}
        if not digests["image"] or (found.label and not digests["label"]):
            return out
        same = {part: _is_same(old, found, part, digests[part]) for part in digests}
        if same["image"] and old is not None:
            height, width, phash = old.height, old.width, old.phash
        else:
            picture = self._try(found, "image", out, partial(self._image, found))
            if picture is None:
                return out
            header, image = picture
            height, width, phash = header.height, header.width, perceptual_hash(image)
            out.is_turned = bool(found.label) and header.orientation > 1
        size = (height, width)
        if found.label and not self._label(task, size, out, reuse=same["image"] and same["label"]):
            return out
        coarse = found.coarse if digests["coarse"] else ""
        known_coarse = same["image"] and same["coarse"]
        if (
            coarse
            and not known_coarse
            and self._try(found, "coarse", out, partial(self._map, coarse, found, size)) is None
        ):
            coarse = ""
        paths = found.image, found.label, coarse
        kind = "fine" if found.label else "coarse" if coarse else "unlabelled"
        hashes = digests["image"], digests["label"], digests["coarse"] if coarse else ""
        where = found.split, task.role, found.city, found.sequence
        out.sample = Sample(found.name, *paths, kind, *where, found.frame, task.block, *size, *hashes, phash)
        return out

    def files(self, task: Task) -> list[Path]:
        """Return the files that a check reads."""
        parts = (task.found.image, task.found.label, task.found.coarse)
        return [self.root / path for path in parts if path]

    def _label(self, task: Task, size: tuple[int, int], out: Checked, *, reuse: bool) -> bool:
        """Check the fine label and find its centroids; return whether the image can be used."""
        wanted = task.role == "learn"
        if reuse and (not wanted or task.known_centroids is not None):
            out.centroids = task.known_centroids if wanted else None
            return True
        label = self._try(task.found, "label", out, partial(self._map, task.found.label, task.found, size))
        if label is not None and wanted:
            out.centroids = find_centroids(label, self.classes.num_classes, self.tile, min_pixels=self.min_pixels)
        return label is not None

    def _digest(self, found: Found, part: str, out: Checked) -> str:
        """SHA-256 of a part's file; "" for a missing part, or for a file that cannot be read (which is refused)."""
        path = getattr(found, part)
        try:
            return sha256_file(fetched(self.root / path)) if path else ""
        except (OSError, IntegrityError) as error:
            detail = f"cannot be read ({error.strerror if isinstance(error, OSError) else error.message})"
            out.refused.append(Refused(found.name, path, part, found.split, "unreadable", detail))
            return ""

    def _try(self, found: Found, part: str, out: Checked, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except DecodeError as error:
            path = getattr(found, part)
            detail = "; ".join(filter(None, (error.message.removeprefix(f"{self.root / path}: "), error.hint)))
            out.refused.append(Refused(found.name, path, part, found.split, error.reason, detail))
            return None

    def _image(self, found: Found) -> tuple[Header, NDArray[np.uint8]]:
        header, image = read_picture(self.root / found.image, max_pixels=self.max_pixels)
        if is_constant(image):
            raise DecodeError(f"all pixels are {tuple(int(v) for v in image[0, 0])}", reason="constant")
        return header, image

    def _map(self, path: str, found: Found, size: tuple[int, int]) -> NDArray[np.uint8]:
        label = read_label(self.root / path, self.classes, max_pixels=self.max_pixels)
        if label.shape != size:
            detail = f"label is {label.shape[1]}x{label.shape[0]}, image is {size[1]}x{size[0]}"
            if read_header(self.root / found.image).orientation > 1:
                detail += TURNED
            raise DecodeError(detail, reason="size-mismatch")
        if label[0, 0] == IGNORE and is_constant(label):
            raise DecodeError("no pixel carries a class", reason="empty")
        return label


def _is_same(old: Sample | None, found: Found, part: str, digest: str) -> bool:
    """Whether an earlier check of a part is still valid: the same bytes, under a name with the same meaning."""
    if old is None or getattr(old, f"{part}_sha256") != digest:
        return False
    before, now = getattr(old, part), getattr(found, part)
    # A name defines the expected format, and the kind of ids in a map.
    return PurePosixPath(before).suffix == PurePosixPath(now).suffix and holds_train_ids(before) == holds_train_ids(now)


def perceptual_hash(image: NDArray[np.uint8]) -> str:
    """Return 16 hex digits that stay nearly the same when an image is re-encoded, resized or brightened.

    They are the signs of the 64 lowest cosine frequencies of the RGB image's 32x32 grey thumbnail.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    low = cv2.dct(small)[:8, :8].ravel()
    # The first coefficient is the mean brightness: left out of the median, always 0 in the hash.
    bits = low > np.median(low[1:])
    bits[0] = False
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"
