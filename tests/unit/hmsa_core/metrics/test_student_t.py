"""Student's t against the figures of the printed tables, and against its own inverse."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.metrics.student_t import t_cdf, t_quantile


def test_quantiles_are_those_of_the_tables():
    df = [1, 2, 3, 4, 7, 30, 120]
    np.testing.assert_allclose(t_quantile(0.975, df), [12.706, 4.303, 3.182, 2.776, 2.365, 2.042, 1.980], atol=5e-4)
    np.testing.assert_allclose(t_quantile(0.95, df), [6.314, 2.920, 2.353, 2.132, 1.895, 1.697, 1.658], atol=5e-4)
    assert abs(t_quantile(0.975, 1e9) - 1.95996) < 2e-3


def test_one_degree_of_freedom_is_cauchys_and_two_have_a_closed_form():
    x = np.array([-5.0, -1.0, 0.0, 0.5, 1.0, 40.0])
    np.testing.assert_allclose(t_cdf(x, 1), 0.5 + np.arctan(x) / np.pi, atol=1e-9)
    np.testing.assert_allclose(t_cdf(x, 2), 0.5 + x / (2 * np.sqrt(2 + x**2)), atol=1e-9)


@given(p=st.floats(0.5, 0.9999), df=st.floats(1, 5000))
def test_the_distribution_of_a_quantile_is_its_share(p, df):
    assert abs(float(t_cdf(t_quantile(p, df), df)) - p) < 1e-8
