"""The coefficient of determination, by hand and against NumPy's correlation."""

import numpy as np
import pytest

from rewardjax.evaluation.reliability import r_squared


def test_it_is_the_squared_correlation():
    rng = np.random.default_rng(0)
    reward, noise = rng.normal(size=(2, 200))
    score = reward + noise
    expected = np.corrcoef(reward, score)[0, 1] ** 2
    np.testing.assert_allclose(r_squared(reward, score), expected, rtol=1e-12)
    np.testing.assert_allclose(r_squared(-3 * reward + 1, score), expected, rtol=1e-12)


def test_by_hand():
    """The line through (0, 0), (1, 3), (2, 0) is flat: it says nothing. Two points are always on a line."""
    assert r_squared(np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 0.0])) == 0.0
    assert r_squared(np.array([0.0, 1.0]), np.array([5.0, 3.0])) == 1.0
    # Residuals of y = 1/2 + x: -1/2, 1/2, 1/2, -1/2; the scores' squares around 2 are 4, 0, 1, 1.
    np.testing.assert_allclose(
        r_squared(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 2.0, 3.0, 3.0])), 5 / 6
    )


def test_bins_average_what_differs_inside_them_and_weigh_by_size():
    reward, score = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0, 1.0])
    # Bins [0, 1), [1, 2]: means (0, 0) and (4/3, 5/3): two points.
    assert r_squared(reward, score, np.array([0.0, 1.0, 2.0])) == pytest.approx(1.0)
    # Bins of one value: (0, 0), (1, 2) twice, (2, 1): covariance 1/4, variances 1/2 and 11/16.
    found = r_squared(reward, score, np.array([0.0, 0.5, 1.5, 2.0]))
    np.testing.assert_allclose(found, 0.25**2 / (0.5 * 11 / 16))


def test_without_spread_it_is_nothing():
    assert r_squared(np.array([1.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    assert r_squared(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == 0.0


@pytest.mark.parametrize(
    ("reward", "score", "edges", "message"),
    [
        ([], [], None, "at least one point"),
        ([np.nan], [1.0], None, "all of them finite"),
        ([3.0], [1.0], np.array([0.0, 2.0]), "edges: expected to hold every reward, 3.0 to 3.0"),
    ],
)
def test_bad_points_are_refused(reward, score, edges, message):
    with pytest.raises(ValueError, match=message):
        r_squared(np.array(reward), np.array(score), edges)
