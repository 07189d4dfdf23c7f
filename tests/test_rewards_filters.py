import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import rewards

MASK = jnp.ones((10, 2), bool)


def test_groups_that_always_or_never_succeed_leave_the_batch():
    outcomes = jnp.array([1.0, 0, 0, 0, 0, 1, 1, 1, 1, 0])  # means of groups of five: 0.2, 0.8
    reward = rewards.outcome(outcomes, MASK)
    inside = rewards.within_mean(reward, 5, 0.2, 0.8)
    np.testing.assert_array_equal(inside.applicable, np.ones(10, bool))
    np.testing.assert_array_equal(inside.steps, reward.steps)
    lower = rewards.within_mean(reward, 5, 0.3, 0.8)
    np.testing.assert_array_equal(lower.applicable, [False] * 5 + [True] * 5)
    np.testing.assert_array_equal(lower.steps[:5], np.zeros((5, 2)))


def test_rows_that_do_not_apply_are_not_in_the_mean():
    applicable = jnp.array([True] + [False] * 4 + [True] * 5)
    outcomes = jnp.array([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    reward = rewards.outcome(outcomes, MASK, applicable=applicable)
    found = rewards.within_mean(reward, 5, 0.2, 0.8)
    np.testing.assert_array_equal(found.applicable, [False] * 5 + [True] * 5)


def test_a_range_the_wrong_way_round_is_refused():
    reward = rewards.outcome(jnp.zeros(10), MASK)
    with pytest.raises(ValueError, match=r"expected low <= high, found 0\.8 and 0\.2"):
        rewards.within_mean(reward, 5, 0.8, 0.2)
