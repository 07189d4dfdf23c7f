"""The tilted reference, by hand."""

import numpy as np
import pytest

from rewardjax.evaluation.tilting import gamma_at_kl, optimum_at_kl, tilted, tilted_kl

# Four samples with one of utility log 3: at gamma 1 weights 1/2 and three of 1/6.
UTILITY = np.array([[np.log(3.0), 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
AWAY = 0.5 * np.log(2) + 0.5 * np.log(4 / 6)


def test_weights_are_proportional_to_the_exponential_of_the_utility():
    expected = [[1 / 2, 1 / 6, 1 / 6, 1 / 6], [1 / 4] * 4]
    np.testing.assert_allclose(tilted(UTILITY, 1.0), expected)
    np.testing.assert_allclose(tilted(2 * UTILITY + 1000, 2.0), expected)


def test_divergence_by_hand():
    np.testing.assert_allclose(tilted_kl(tilted(UTILITY, 1.0)), AWAY / 2)
    best = tilted(UTILITY[:1], 1e-3)
    np.testing.assert_allclose(best, [[1, 0, 0, 0]])
    np.testing.assert_allclose(tilted_kl(best), np.log(4))


def test_gamma_is_found_for_a_divergence():
    np.testing.assert_allclose(gamma_at_kl(UTILITY, AWAY / 2), 1.0, rtol=1e-6)
    np.testing.assert_allclose(gamma_at_kl(5 * UTILITY, AWAY / 2), 5.0, rtol=1e-6)


def test_means_under_the_optimum():
    columns = {
        "first": np.array([[True, False, False, False]] * 2),
        "place": np.array([[0, 1, 2, 3]] * 2),
    }
    gamma, means = optimum_at_kl(UTILITY, columns, AWAY / 2)
    np.testing.assert_allclose(gamma, 1.0, rtol=1e-6)
    assert means == pytest.approx(
        {"first": (1 / 2 + 1 / 4) / 2, "place": (1 + 3 / 2) / 2}, rel=1e-6
    )


@pytest.mark.parametrize("budget", [0.0, np.log(4) / 2 + 0.01, np.nan])
def test_a_divergence_that_no_weights_have_is_refused(budget):
    with pytest.raises(ValueError, match="budget: expected a divergence that the samples can show"):
        gamma_at_kl(UTILITY, budget)
    with pytest.raises(ValueError, match="budget: expected"):
        gamma_at_kl(np.zeros((1, 4)), 0.1)
