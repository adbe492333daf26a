import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from examples.streets.rng import Rng, hash_grid, noise_tile, white_noise


def test_draws_are_these_numbers_on_every_machine():
    rng = Rng(1, "street", "aachen")
    assert [rng.integer(0, 999) for _ in range(6)] == [469, 603, 85, 433, 101, 446]
    assert Rng(1, "street").uniform() == 0.05143919327754798
    assert white_noise((2, 3), 7).tolist() == [[214, 165, 107], [85, 16, 53]]


@given(st.integers(), st.integers(-(10**6), 10**6), st.integers(0, 10**6))
def test_integers_stay_within_both_ends(seed, low, extent):
    draws = [Rng(seed).fork(k).integer(low, low + extent) for k in range(5)]
    assert all(low <= draw <= low + extent for draw in draws)


@given(st.integers(0, 50))
def test_a_fork_does_not_depend_on_how_much_was_drawn_before(count):
    parent = Rng("city", 3)
    for _ in range(count):
        parent.u64()
    assert parent.fork("tree", 1).u64() == Rng("city", 3).fork("tree", 1).u64()


def test_different_keys_give_different_streams():
    keys = [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1", 0)]
    assert len({Rng(*key).u64() for key in keys}) == len(keys)


def test_weighted_draws_follow_their_weights():
    rng = Rng("weights")
    assert {rng.integer(3, 5) for _ in range(100)} == {3, 4, 5}, "both ends are reached"
    draws = [rng.weighted((("often", 9), ("rarely", 1))) for _ in range(2000)]
    assert 0.86 < draws.count("often") / 2000 < 0.94


def test_noise_covers_its_range_and_tiles_are_balanced():
    noise = white_noise((128, 128), 3)
    assert noise.min() == 0
    assert noise.max() == 255
    assert abs(noise.mean() - 127.5) < 2
    for level in (0, 2, 4, 6):
        tile = noise_tile(level)
        assert np.abs(tile).max() == 64
        # A smooth tile's neighbours are alike, also across the seam where it wraps.
        step = np.abs(tile - np.roll(tile, 1, axis=0)).max()
        assert step <= 128 >> (level // 2)


def test_cells_with_negative_coordinates_are_hashed_too():
    a = np.array([-3, -2, -1, 0, 1], dtype=np.int64)
    assert len(set(hash_grid(a, a * 0, 1).tolist())) >= 4
