from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hmsa_core.io.errors import InputError, StoreError
from hmsa_core.labels import ConfidenceCode
from hmsa_core.labels.store.format import Codec, decode, encode, png_bytes
from tests.support.cases import CASES
from tests.support.label_maps import maps

CODE = ConfidenceCode()
ARRAYS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(ARRAYS, st.sampled_from(["label", "confidence", "source"]), st.sampled_from(["png", "webp"]))
@settings(max_examples=CASES)
def test_any_map_comes_back_unchanged_and_other_programs_see_the_same(
    array: np.ndarray, what: str, name: Codec
) -> None:
    data = encode(array, what, name)  # type: ignore[arg-type]  # a literal, drawn by hypothesis
    assert np.array_equal(decode(data, name), array)
    image = Image.open(io.BytesIO(data))
    assert image.format == name.upper()
    seen = np.asarray(image)
    assert np.array_equal(seen if name == "png" else seen[..., 0], array)


def _pillow(array: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return len(file.getvalue())


@pytest.mark.parametrize("shape", [(64, 128), (360, 480), (768, 1024)])
def test_bytes_are_at_most_those_of_pillows_default_and_a_twentieth(shape: tuple[int, int]) -> None:
    ours = theirs = 0
    for seed in range(3):
        label, confidence = maps(seed, shape)
        noisy = confidence - 1e-3 * np.random.default_rng(seed).random(shape, dtype=np.float32) * confidence
        code = CODE.encode(noisy)
        ours += len(encode(label, "label", "png")) + len(encode(code, "confidence", "png"))
        theirs += _pillow(label) + _pillow(code)
    assert ours <= 1.05 * theirs


def test_a_map_too_large_for_webp_is_refused() -> None:
    with pytest.raises(InputError, match="too large for WebP"):
        encode(np.zeros((1, 16384), np.uint8), "label", "webp")
    assert decode(encode(np.zeros((1, 16384), np.uint8), "label", "png"), "png").shape == (1, 16384)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x89PNG\r\n\x1a\n" + bytes(40)])
@pytest.mark.parametrize("name", ["png", "webp"])
def test_bytes_that_are_no_image_are_an_error(data: bytes, name: Codec) -> None:
    with pytest.raises(StoreError, match="could not be decoded"):
        decode(data, name)


def test_colours_are_written_as_rgb_and_a_colour_image_is_no_map() -> None:
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 0] = 200
    assert np.asarray(Image.open(io.BytesIO(png_bytes(rgb))))[0, 0].tolist() == [200, 0, 0]
    with pytest.raises(StoreError, match="8-bit grey"):
        decode(png_bytes(rgb), "png")
