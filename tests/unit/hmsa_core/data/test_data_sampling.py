from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hmsa_core import taxonomy
from hmsa_core.data.checks import perceptual_hash
from hmsa_core.data.near import hash_values, near_duplicates, nearest
from hmsa_core.data.sampling import Centroids, find_centroids
from hmsa_core.io.errors import InputError, IntegrityError

from .conftest import encode, picture

REFERENCE = Path(__file__).resolve().parents[3] / "reference"
MAPS = np.load(REFERENCE / "data_sampling_labels.npz")["label_ids"]
GOLDEN = json.loads((REFERENCE / "data_sampling.json").read_text())
TRAIN_ID = taxonomy.cityscapes().id_to_train

labels = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from([0, 1, 2, 5, 255])
)


def hamming(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_centroids_are_exactly_the_released_ones():
    found: dict[str, list[list[int]]] = {str(c): [] for c in range(19)}
    tile = GOLDEN["config"]["tile"]
    for image, ids in enumerate(MAPS):
        height, width = (side // tile * tile for side in ids.shape)  # the released code drops remainders
        for class_id, x, y, _ in find_centroids(TRAIN_ID[ids[:height, :width]], 19, tile).tolist():
            found[str(class_id)].append([image, x, y])
    assert {c: points for c, points in found.items() if points} == GOLDEN["centroids_trainid"]
    assert found["16"] == []


@settings(max_examples=100, deadline=None)
@given(labels, st.integers(1, 20))
def test_centroids_agree_with_a_plain_computation(label, tile):
    expected = []
    for y0 in range(0, label.shape[0], tile):
        for x0 in range(0, label.shape[1], tile):
            part = label[y0 : y0 + tile, x0 : x0 + tile]
            for class_id in range(6):
                ys, xs = np.nonzero(part == class_id)
                if len(ys):
                    expected.append([class_id, x0 + int(xs.mean()), y0 + int(ys.mean()), len(ys)])
    assert find_centroids(label, 6, tile).tolist() == expected


def test_few_pixels_and_small_pieces_give_no_centroid():
    label = np.full((16, 16), 255, np.uint8)
    label[0, ::2] = 1  # 8 speckles
    label[8:11, 8:11] = 2  # one piece of 9
    kept = [row[0] for row in find_centroids(label, 3, 16).tolist()]
    assert kept == [1, 2]
    assert [row[0] for row in find_centroids(label, 3, 16, min_pixels=9).tolist()] == [2]
    assert [row[0] for row in find_centroids(label, 3, 16, min_component=2).tolist()] == [2]
    with pytest.raises(InputError, match="tile size 0"):
        find_centroids(label, 3, 0)


def test_centroid_tables_survive_writing_and_splitting(tmp_path):
    parts = [(f"image-{i}", find_centroids(TRAIN_ID[m], 19, 128)) for i, m in enumerate(MAPS)]
    parts.insert(2, ("nothing", np.zeros((0, 4), np.int32)))
    table = Centroids.collect(parts)
    table.write(tmp_path / "c.parquet", tile=128)
    read = Centroids.load(tmp_path / "c.parquet")
    assert Centroids.load(tmp_path / "c.parquet").settings == {"tile": 128}
    split = read.split()
    assert sorted(split) == sorted(name for name, values in parts if len(values))
    assert all(np.array_equal(split[name], values) for name, values in parts if len(values))
    assert read.counts(19).tolist() == [GOLDEN["count_per_class"][str(c)] for c in range(19)]
    assert read.counts(25)[:19].tolist() == read.counts(19).tolist()
    some = read.of(["image-3", "unknown", "image-0"])
    assert some.names == ("image-3", "unknown", "image-0")
    assert sorted(some.split()) == ["image-0", "image-3"]
    assert np.array_equal(some.split()["image-3"], split["image-3"])
    Centroids().write(tmp_path / "c.parquet")
    read = Centroids.load(tmp_path / "c.parquet")
    assert (len(read), read.split(), read.counts(3).tolist()) == (0, {}, [0, 0, 0])
    assert len(read.of(["a"])) == 0


def test_a_damaged_centroid_table_is_refused(tmp_path):
    path = tmp_path / "c.parquet"
    Centroids.collect([("a", find_centroids(TRAIN_ID[MAPS[0]], 19, 128))]).write(path)
    good, data, caught = Centroids.load(path).values.tolist(), path.read_bytes(), 0
    for at in range(4, len(data), len(data) // 40):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = Centroids.load(path).values.tolist()
        except IntegrityError:
            caught += 1
        else:  # only bytes without a meaning may change unseen
            assert found == good
    assert caught > 20


def test_perceptual_hash_survives_compression_size_and_brightness_but_tells_pictures_apart():
    for seed in range(20):
        image = picture(seed, (120, 200))
        own = perceptual_hash(image)
        assert len(own) == 16
        jpeg = np.asarray(Image.open(io.BytesIO(encode(image, "JPEG", quality=60))).convert("RGB"))
        small = np.asarray(Image.fromarray(image).resize((100, 60), Image.Resampling.BILINEAR))
        darker = (image * 0.8).astype(np.uint8)
        assert max(hamming(own, perceptual_hash(v)) for v in (jpeg, small, darker)) <= 4
        assert hamming(own, perceptual_hash(picture(seed + 100, (120, 200)))) > 8


def test_near_duplicates_are_all_found():
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**63, 3000, np.uint64)
    values[77] = values[400] ^ np.uint64(0b101)
    values[10] = values[11]
    values[2999] = values[0] ^ np.uint64(1 << 63)
    hashes = [f"{int(v):016x}" for v in values]
    assert hamming(hashes[77], hashes[400]) == 2
    assert hash_values(hashes).tolist() == values.tolist()
    assert near_duplicates(values, 3) == [(0, 2999, 1), (10, 11, 0), (77, 400, 2)]
    assert near_duplicates(values, 1) == [(0, 2999, 1), (10, 11, 0)]
    assert near_duplicates(values[:0], 3) == []
    standing = near_duplicates(np.full(3000, 255, np.uint64), 0, limit=500)
    assert standing == [(0, j, 0) for j in range(1, 501)]


@st.composite
def clustered(draw) -> np.ndarray:
    """Hashes of a few pictures, each many times with some bits turned over."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 70))
    values = rng.choice(rng.integers(0, 2**63, draw(st.integers(1, 30)), np.uint64), count)
    for _ in range(draw(st.integers(0, 12))):
        values = values ^ (np.uint64(1) << rng.integers(0, 64, count, np.uint64)) * rng.integers(0, 2, count, np.uint64)
    return values


@settings(max_examples=60)
@given(clustered(), st.sampled_from([0, 1, 3, 4, 9, 16]), st.sampled_from([3, 50, 10**6]))
def test_near_duplicates_are_those_of_all_pairs(values, bits, limit):
    apart = np.bitwise_count(values[:, None] ^ values[None])
    pairs = [(i, j, int(apart[i, j])) for i, j in np.argwhere(np.triu(apart <= bits, 1)).tolist()]
    assert near_duplicates(values, bits, limit=limit) == pairs[:limit]
    half = len(values) // 2
    for i, found in enumerate(nearest(values[:half], values[half:], bits)):
        near = apart[i, half:]
        at = int(near.argmin()) if len(near) else -1
        assert found == ((at, int(near[at])) if at >= 0 and near[at] <= bits else (-1, -1))


@pytest.mark.slow
def test_near_duplicates_among_twenty_thousand_images_take_seconds():
    values = np.random.default_rng(4).integers(0, 2**63, 20_000, np.uint64)
    started = time.perf_counter()
    near_duplicates(values, 4)
    assert time.perf_counter() - started < 20
