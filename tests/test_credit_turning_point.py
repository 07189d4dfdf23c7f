"""Turning points and their credit, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewardjax.credit.turning_point import (
    balanced,
    stepwise_group_relative,
    turning_point,
    turning_points,
)
from rewardjax.trajectory import Trajectory


def trajectory(mask):
    mask = jnp.asarray(mask, bool)
    return Trajectory(jnp.zeros((*mask.shape, 2)), mask, mask, jnp.zeros(mask.shape))


ON = jnp.ones((1, 4), bool)


def points(d, **settings):
    d = jnp.asarray([d], jnp.float32)
    return np.flatnonzero(turning_points(d, jnp.ones(d.shape, bool), **settings)[0]).tolist()


@pytest.mark.parametrize(
    ("d", "consistent", "inconsistent", "trendless"),
    [
        # R = 0, -1, 1, 3, 4: down, then up; D = 4. The turn is at step 1 (from 0).
        ([-1, 2, 2, 1], [1], [1], [1]),
        # R = 0, -1, 3, 2, 2: what follows the turn at step 1 goes down again.
        ([-1, 4, -1, 0], [], [1], []),
        # R = 0, 1, 0, -1, -2: falls in the end; step 1 turns down, and so it goes on.
        ([1, -1, -1, -1], [1], [1], [1]),
        # The last step turns; nothing is gained after it.
        ([1, 1, 1, -5], [], [3], []),
        # The first step counts where what follows goes its way.
        ([1, 1, 0, 1], [0], [0], [0]),
        # Up, down, up, with D > 0: the way down is a turn only if the trend is not asked for.
        ([2, -1, -1, 3], [0], [0, 3], [0]),
        ([0, 0, 0, 0], [], [], []),
    ],
)
def test_turning_points_by_hand(d, consistent, inconsistent, trendless):
    assert points(d) == consistent
    assert points(d, consistent=False) == inconsistent
    assert points(d, trend=False) == trendless


def test_without_the_trend_every_change_of_direction_is_one():
    assert points([2, -1, -1, 3], trend=False, consistent=False) == [0, 1, 3]


@given(hnp.arrays(np.float32, (1, 6), elements=st.integers(1, 9)), st.sampled_from([-1.0, 1.0]))
@settings(max_examples=30, deadline=None)
def test_a_monotone_row_has_no_turn_after_its_first_step(d, sign):
    found = turning_points(jnp.asarray(sign * d), jnp.ones((1, 6), bool))
    assert np.flatnonzero(found[0]).tolist() == [0]


def test_steps_off_the_mask_are_none():
    mask = jnp.array([[True, True, True, False]])
    found = turning_points(jnp.array([[-1.0, 2.0, 2.0, -9.0]]), mask)
    np.testing.assert_array_equal(found, [[False, True, False, False]])


def test_balance_keeps_the_largest_of_the_larger_side():
    on = jnp.array([[True, True], [True, False], [True, True]])
    bonus = jnp.array([[1.0, 3.0], [2.0, 9.0], [-1.0, -4.0]])
    expected = [[False, True], [True, False], [True, True]]
    np.testing.assert_array_equal(balanced(on, bonus), expected)


def test_balance_keeps_all_where_a_side_is_empty():
    on = jnp.array([[True, False, True]])
    np.testing.assert_array_equal(balanced(on, jnp.array([[1.0, 1.0, 2.0]])), on)


def test_equal_bonuses_are_taken_in_order():
    on = jnp.ones((1, 3), bool)
    found = balanced(on, jnp.array([[2.0, 2.0, -1.0]]))
    np.testing.assert_array_equal(found, [[True, False, True]])


def test_each_step_is_compared_with_the_same_step_of_the_group():
    rewards = jnp.array([[1.0, 5.0, 7.0], [3.0, 5.0, 9.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    found = stepwise_group_relative(rewards, trajectory(mask), group_size=2, epsilon=0.0)
    expected = [[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_equal_rewards_get_exactly_nothing():
    rewards = jnp.full((7, 3), 0.1)
    found = stepwise_group_relative(rewards, trajectory(np.ones((7, 3))), group_size=7)
    assert np.all(np.asarray(found) == 0)


D = jnp.array([[-1.0, 2.0, 2.0, 1.0], [-1.0, -1.0, 0.0, 0.0]])


def test_a_turning_point_owns_what_follows():
    traj = trajectory(np.ones((2, 4)))
    found = turning_point(D, traj, group_size=2, balance=False, epsilon=0.0)
    # r = [-1, 5, 2, 1] and [-2, -1, 0, 0]: the second row's first step goes its row's way.
    np.testing.assert_allclose(found, [[1, 1, 1, 1], [-1, -1, -1, -1]], atol=1e-5)
    scaled = jnp.concatenate([D, jnp.zeros((1, 4))])
    traj = trajectory(np.ones((3, 4)))
    found = np.asarray(turning_point(scaled, traj, group_size=3, balance=False, epsilon=0.0))
    r = np.array([[-1, 5, 2, 1], [-2, -1, 0, 0], [0, 0, 0, 0.0]])
    np.testing.assert_allclose(found, (r - r.mean(0)) / r.std(0), atol=1e-5)
    added = turning_point(scaled, traj, group_size=3, balance=False, additive=True, epsilon=0.0)
    r = np.array([[-1, 7, 2, 1], [-3, -1, 0, 0], [0, 0, 0, 0.0]])
    np.testing.assert_allclose(added, (r - r.mean(0)) / r.std(0), atol=1e-5)


def test_without_turning_points_it_is_stepwise_credit():
    # What follows each first step goes the other way, and nothing turns for good.
    rewards = jnp.array([[1.0, -3.0, 0.0], [-1.0, 3.0, 0.0]])
    traj = trajectory(np.ones((2, 3)))
    assert not np.any(turning_points(rewards, traj.mask))
    np.testing.assert_array_equal(
        turning_point(rewards, traj, group_size=2),
        stepwise_group_relative(rewards, traj, group_size=2),
    )
