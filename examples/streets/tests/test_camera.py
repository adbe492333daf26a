import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.streets.camera import NEAR_M, Camera, clip_to_rect, rotation

CAMERA = Camera(width=256, height=128, focal=280.0, cx=128.0, cy=56.0, x=0.0, y=1.25, z=0.0)
metres = st.floats(-200, 200, allow_nan=False)


def area(points):
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, points[1:] + points[:1], strict=True))) / 2


def test_a_point_straight_ahead_falls_on_the_principal_point():
    assert CAMERA.project(CAMERA.to_view((0.0, 1.25, 50.0))) == (128.0, 56.0)


def test_things_twice_as_far_are_half_as_tall():
    def height(z):
        foot = CAMERA.project(CAMERA.to_view((2.0, 0.0, z)))
        head = CAMERA.project(CAMERA.to_view((2.0, 1.8, z)))
        return foot[1] - head[1]

    assert height(10.0) == pytest.approx(2 * height(20.0))


@given(st.floats(-0.9, 0.9))
def test_a_rational_rotation_is_a_rotation(half_tangent):
    cos, sin = rotation(half_tangent)
    assert cos * cos + sin * sin == pytest.approx(1.0)


@given(st.lists(st.tuples(metres, metres, metres), min_size=3, max_size=6))
def test_clipped_polygons_lie_close_around_the_picture(points):
    for x, y in CAMERA.polygon([CAMERA.to_view(point) for point in points]):
        assert -6.001 <= x <= 262.001
        assert -6.001 <= y <= 134.001


def test_a_road_that_passes_under_the_camera_is_cut_at_the_near_plane():
    road = [(-3.0, 0.0, -10.0), (3.0, 0.0, -10.0), (3.0, 0.0, 100.0), (-3.0, 0.0, 100.0)]
    seen = CAMERA.polygon([CAMERA.to_view(point) for point in road])
    lowest = CAMERA.project((0.0, -1.25, NEAR_M))[1]
    assert max(y for _, y in seen) == min(lowest, 134.0)
    assert area(seen) > 5000
    behind = [(-1.0, 0.0, -5.0), (1.0, 0.0, -5.0), (0.0, 2.0, -5.0)]
    assert CAMERA.polygon([CAMERA.to_view(point) for point in behind]) == []


def test_clipping_keeps_what_is_inside_and_its_area():
    square = [(10.0, 10.0), (20.0, 10.0), (20.0, 20.0), (10.0, 20.0)]
    assert area(clip_to_rect(square, 0, 0, 30, 30)) == 100
    assert area(clip_to_rect(square, 15, 0, 30, 30)) == 50
    assert clip_to_rect(square, 40, 40, 50, 50) == []


def test_a_bend_moves_far_things_sideways_and_near_ones_hardly():
    bent = Camera(width=256, height=128, focal=280.0, cx=128.0, cy=56.0, x=0.0, y=1.25, z=0.0, bend=0.002)
    near, far = (bent.to_view((0.0, 0.0, z))[0] for z in (5.0, 60.0))
    assert near == pytest.approx(0.05)
    assert far == pytest.approx(7.2)
