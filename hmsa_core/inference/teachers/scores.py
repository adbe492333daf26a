"""`scores:FOLDER`: probabilities that were made elsewhere, found by the image's name in the label store.

    NAME.npz          one array, or one called "probabilities": C x h x w
    NAME.npy          C x h x w
    NAME/CLASS.png    grey, 8 or 16 bit, white = 1: one picture per class, by name or number; no picture = 0

Floats lie in [0, 1]; uint8 and uint16 are shares of their largest number. Any resolution of the image's proportions.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.inference.teachers.sources import Source
from hmsa_core.io.errors import InputError, did_you_mean
from hmsa_core.models.rows import whole

Float32 = NDArray[np.float32]
_ARRAY = "probabilities"


def check_files(source: Source, images: Sequence[str]) -> None:
    """InputError: an image has no scores."""
    missing = [name for name in images if not _file(source, name).exists()]
    if missing:
        raise InputError(
            f"{source}: has no scores of {len(missing)} of {len(images)} images, the first: {missing[0]}",
            hint=f"expected {missing[0]}.npz, {missing[0]}.npy or {missing[0]}/CLASS.png",
        )


def picture_names(source: Source) -> tuple[str, ...] | int:
    """Classes of a folder of pictures NAME/CLASS.png by their file names; how many, where these are numbers; else 0."""
    found = {path.stem for path in source.files if path.suffix == ".png"}
    numbers = [int(stem) for stem in found if stem.isdecimal()]
    return 1 + max(numbers) if found and len(numbers) == len(found) else tuple(sorted(found)) or 0


def read_scores(source: Source, name: str, channels: Sequence[str] | int, image: NDArray[np.uint8]) -> Float32:
    """Probabilities of an image, T x H x W float32; `channels`: names of the T classes, or their number.

    Raises:
        InputError: damaged, another shape, no probabilities.
    """
    path = _file(source, name)
    found = _as_float(path, _pictures(path, channels) if path.is_dir() else _array(path))
    if found.ndim != 3 or 0 in found.shape:
        raise InputError(f"{path}: has the shape {found.shape}, expected classes x height x width")
    (height, width), size = found.shape[1:], (image.shape[0], image.shape[1])
    if abs(width * size[0] - height * size[1]) > max(size[0], size[1], 0.01 * width * size[0]):
        raise InputError(f"{path}: is {width}x{height}, its image {size[1]}x{size[0]}: they do not show the same")
    _check_values(path, found)
    return np.asarray(whole(found).resized(size)(0, size[0]), np.float32)


def _file(source: Source, name: str) -> Path:
    files = (source.path / f"{name}{suffix}" for suffix in (".npz", ".npy"))
    return next((file for file in files if file.is_file()), source.path / name)


def _pictures(folder: Path, channels: Sequence[str] | int) -> NDArray[np.generic]:
    names, count = ((), channels) if isinstance(channels, int) else (channels, len(channels))
    lower = [name.lower() for name in names]
    found: dict[int, NDArray[np.generic]] = {}
    for path in sorted(folder.glob("*.png")):
        stem = path.stem.lower()
        number = lower.index(stem) if stem in lower else int(stem) if stem.isdecimal() else count
        if number >= count and (names or not stem.isdecimal()):  # other numbers are of classes that are not ours
            known = f"the classes are: {', '.join(names[:8])}" if names else "the table has numbers, and no `names`"
            raise InputError(f"{path}: no class is called {path.stem!r}: {did_you_mean(stem, names, known)}")
        found[number] = _picture(path)
    if len({(one.shape, one.dtype) for one in found.values()}) != 1:
        problem = "its pictures must have one size and one depth" if found else "is empty"
        raise InputError(f"{folder}: {problem}")
    zero = np.zeros_like(next(iter(found.values())))
    return np.stack([found.get(i, zero) for i in range(count)])


def _picture(path: Path) -> NDArray[np.generic]:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 2:
        raise InputError(f"{path}: is no grey PNG" if picture is not None else f"{path}: is damaged, or no PNG")
    return picture


def _array(path: Path) -> NDArray[np.generic]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            name = _ARRAY if _ARRAY in found.files or len(found.files) != 1 else found.files[0]
            array: NDArray[np.generic] = found[name]
            return array
    except KeyError:
        raise InputError(f"{path}: holds several arrays, none is called {_ARRAY!r}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _as_float(path: Path, found: NDArray[np.generic]) -> Float32:
    if found.dtype in (np.uint8, np.uint16):
        return found.astype(np.float32) / np.float32(255 if found.dtype == np.uint8 else 65535)
    if found.dtype.kind != "f":
        raise InputError(f"{path}: holds {found.dtype}, expected floats, uint8 or uint16")
    return found.astype(np.float32)


def _check_values(path: Path, found: Float32) -> None:
    if not np.isfinite(found).all():
        raise InputError(f"{path}: holds {int((~np.isfinite(found)).sum())} numbers that are not finite")
    if found.min() < 0 or found.max() > 1.001:
        raise InputError(f"{path}: holds {found.min():.3g} to {found.max():.3g}, expected probabilities from 0 to 1")
    largest = float(found.sum(0).max())
    if largest > 1.01 + len(found) / 510:  # bytes are rounded
        raise InputError(f"{path}: probabilities of a pixel sum to {largest:.3g}, at most 1 is expected")
