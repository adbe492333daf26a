from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_core.io.errors import InputError
from hmsa_core.labels.finalise import apply_mask, measured_masks, read_mask


def _truth(void_rows: int, shape: tuple[int, int] = (10, 12)) -> np.ndarray:
    truth = np.zeros(shape, np.uint8)
    truth[shape[0] - void_rows :] = 255
    return truth


def test_what_is_void_in_nearly_all_images_of_a_camera_is_its_mask() -> None:
    labels = [_truth(2)] * 19 + [_truth(5)]
    masks = measured_masks(labels, 0.9, 20)
    assert np.array_equal(masks[10, 12], _truth(2) == 255)
    labels = [_truth(2)] * 9 + [_truth(0)]
    assert measured_masks(labels, 0.9, 1) == {}, "exactly the share is not more than the share"
    assert measured_masks(labels, 0.89, 1) != {}


def test_cameras_of_other_sizes_or_with_few_images_get_no_mask_of_others() -> None:
    labels = [_truth(2)] * 20 + [_truth(1, (8, 8))] * 3
    assert set(measured_masks(labels, 0.9, 20)) == {(10, 12)}
    assert set(measured_masks(labels, 0.9, 3)) == {(10, 12), (8, 8)}


def test_a_mask_file_reads_back_and_ignores_its_pixels(tmp_path: Path) -> None:
    mask = _truth(3) == 255
    cv2.imwrite(str(tmp_path / "mask.png"), np.where(mask, 0, 255).astype(np.uint8))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)
    label = np.full((10, 12), 7, np.uint8)
    assert np.array_equal(apply_mask(label, mask), np.where(mask, 255, 7))


def test_a_mask_is_never_resized_and_must_be_grey(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mask is"):
        apply_mask(np.zeros((5, 5), np.uint8), np.zeros((5, 6), bool))
    cv2.imwrite(str(tmp_path / "rgb.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="8-bit grey"):
        read_mask(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="not found"):
        read_mask(tmp_path / "none.png")
