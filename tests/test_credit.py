"""Credit: from per-step rewards to advantages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewardjax import credit
from rewardjax.trajectory import Trajectory

FEW = settings(max_examples=15, deadline=None)
SHAPE = (6, 5)
small = st.floats(-3, 3, width=16)
gae = jax.jit(credit.gae)
lambda_returns = jax.jit(credit.lambda_returns)
whitened_gae = jax.jit(credit.whitened(credit.gae))
reward_arrays = arrays(np.float32, SHAPE, elements=small)
masks = arrays(bool, SHAPE)


def trajectory(mask, **info):
    mask = jnp.asarray(mask, bool)
    return Trajectory(
        actions=jnp.zeros(mask.shape, jnp.int32),
        mask=mask,
        valid=jnp.ones_like(mask),
        logprobs=jnp.zeros(mask.shape),
        info={name: jnp.asarray(column, jnp.float32) for name, column in info.items()},
    )


def outcomes(values, time=2):
    """Rewards and mask of rows that earn `values` at their last step."""
    rewards = np.zeros((len(values), time), np.float32)
    rewards[:, -1] = values
    return jnp.asarray(rewards)


# --- by time ---


def test_gae_by_hand_across_a_hole():
    traj = trajectory([[0, 1, 0, 1, 0]], values=[[7.0, 2.0, 7.0, 4.0, 7.0]])
    rewards = jnp.array([[9.0, 1.0, 9.0, 6.0, 9.0]])
    # last: 6 - 4 = 2; first: 1 + 0.5 * 4 - 2 + 0.5 * 0.5 * 2 = 1.5
    advantages = credit.gae(rewards, traj, discount=0.5, lam=0.5)
    np.testing.assert_allclose(advantages, [[0.0, 1.5, 0.0, 2.0, 0.0]])
    targets = credit.lambda_returns(rewards, traj, discount=0.5, lam=0.5)
    np.testing.assert_allclose(targets, [[0.0, 3.5, 0.0, 6.0, 0.0]])
    one_step = credit.td_targets(rewards, traj, discount=0.5)
    np.testing.assert_allclose(one_step, [[0.0, 3.0, 0.0, 6.0, 0.0]])


def test_gae_of_an_episode_that_was_cut_off_by_hand():
    cut, ended = 8.0, 0.0
    traj = trajectory([[1, 1, 0], [1, 1, 0]], values=[[2.0, 4.0, 7.0]] * 2, bootstrap=[cut, ended])
    rewards = jnp.array([[1.0, 6.0, 9.0]] * 2)
    # last: 6 + 0.5 * 8 - 4 = 6, or 6 - 4 = 2; first: 1 + 0.5 * 4 - 2 = 1, and a quarter of the last
    advantages = credit.gae(rewards, traj, discount=0.5, lam=0.5)
    np.testing.assert_allclose(advantages, [[2.5, 6.0, 0.0], [1.5, 2.0, 0.0]])


def numpy_gae(rewards, values, mask, discount, lam, bootstrap=None):
    """Per row: drop the holes, sum the definition's series, put the holes back."""
    advantages = np.zeros_like(rewards)
    after = np.zeros(len(rewards)) if bootstrap is None else bootstrap
    for row, acted in enumerate(mask):
        r, v = rewards[row][acted], np.append(values[row][acted], after[row])
        errors = r + discount * v[1:] - v[:-1]
        advantages[row, acted] = [
            sum((discount * lam) ** k * error for k, error in enumerate(errors[start:]))
            for start in range(len(r))
        ]
    return advantages


@FEW
@given(reward_arrays, reward_arrays, masks, st.sampled_from([0.0, 0.9, 1.0]), st.floats(0, 1))
def test_gae_matches_the_series(rewards, values, mask, discount, lam):
    traj = trajectory(mask, values=values)
    actual = gae(jnp.asarray(rewards), traj, discount=discount, lam=lam)
    expected = numpy_gae(rewards, values, mask, discount, lam)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@FEW
@given(reward_arrays, masks, arrays(np.float32, SHAPE[:1], elements=small), st.floats(0, 1))
def test_gae_with_a_bootstrap_matches_the_series(rewards, mask, bootstrap, lam):
    values = rewards[::-1] - 1
    traj = trajectory(mask, values=values, bootstrap=bootstrap)
    actual = gae(jnp.asarray(rewards), traj, discount=0.9, lam=lam)
    expected = numpy_gae(rewards, values, mask, 0.9, lam, bootstrap)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_discounted_returns_by_hand():
    traj = trajectory([[1, 0, 1, 1], [0, 0, 0, 0]])
    rewards = jnp.array([[1.0, 50.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    returns = credit.discounted_returns(rewards, traj, discount=0.5)
    np.testing.assert_allclose(returns, [[3.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])


@FEW
@given(reward_arrays, reward_arrays, masks)
def test_lambda_one_targets_are_the_returns_whatever_the_critic_says(rewards, values, mask):
    traj, rewards = trajectory(mask, values=values), jnp.asarray(rewards)
    np.testing.assert_allclose(
        lambda_returns(rewards, traj, discount=0.9, lam=1.0),
        credit.discounted_returns(rewards, traj, discount=0.9),
        atol=1e-4,
    )


def test_gae_needs_values():
    with pytest.raises(KeyError, match=r"lacks a critic's 'values'.*found \['gold'\]"):
        credit.gae(jnp.zeros((1, 2)), trajectory([[1, 1]], gold=[0.0]))


# --- by group ---


def test_group_relative_by_hand():
    rewards = outcomes([1.0, 3.0, 5.0, 5.0])
    traj = trajectory([[1, 1], [0, 1], [1, 1], [1, 1]])
    relative = partial(credit.group_relative, rewards, traj, group_size=2, epsilon=0.0)
    half = 1 / np.sqrt(2)  # deviation of 1 and 3: sqrt(2) with ddof 1, 1 with ddof 0
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(relative(), [[-half, -half], [0.0, half], *zeros], rtol=1e-6)
    np.testing.assert_allclose(relative(ddof=0), [[-1, -1], [0, 1], *zeros], rtol=1e-6)
    np.testing.assert_allclose(relative(normalise=False), [[-1, -1], [0, 1], *zeros])


def test_group_relative_sums_the_rewards_of_acted_steps():
    rewards = jnp.array([[1.0, 2.0, 100.0], [0.0, 1.0, 0.0]])
    traj = trajectory([[1, 1, 0], [1, 1, 1]])
    advantages = credit.group_relative(rewards, traj, group_size=2, normalise=False)
    np.testing.assert_allclose(advantages, [[1, 1, 0], [-1, -1, -1]])


def test_rows_in_which_nothing_acted_do_not_count():
    rewards = outcomes([1.0, 3.0, 1000.0])
    traj = trajectory([[1, 1], [1, 1], [0, 0]])
    advantages = credit.group_relative(rewards, traj, group_size=3, normalise=False)
    np.testing.assert_allclose(advantages, [[-1, -1], [1, 1], [0, 0]])
    advantages = credit.leave_one_out(rewards, traj, group_size=3)
    np.testing.assert_allclose(advantages, [[-2, -2], [2, 2], [0, 0]])


CREDITS = {
    "group_relative": jax.jit(partial(credit.group_relative, group_size=3)),
    "no_epsilon": jax.jit(partial(credit.group_relative, group_size=3, epsilon=0.0)),
    "dr_grpo": jax.jit(partial(credit.group_relative, group_size=3, normalise=False)),
    "leave_one_out": jax.jit(partial(credit.leave_one_out, group_size=3)),
    "log_mean": jax.jit(partial(credit.leave_one_out_log_mean, group_size=3)),
    "plus_plus_baseline": jax.jit(partial(credit.reinforce_plus_plus_baseline, group_size=3)),
}


@pytest.mark.parametrize("name", CREDITS)
def test_zero_spread_is_exactly_zero(name):
    """0.1 three times has a mean that rounds off 0.1, which must not be blown up."""
    traj = trajectory([[1, 1]] * 5 + [[0, 0]] * 4)  # of three, of two, of none
    advantages = CREDITS[name](outcomes([0.1] * 9), traj)
    np.testing.assert_array_equal(advantages, 0.0)


@pytest.mark.parametrize("name", CREDITS)
def test_a_row_alone_in_its_group_gets_zero(name):
    traj = trajectory([[1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(CREDITS[name](outcomes([5.0, 1.0, 2.0]), traj), 0.0)


@pytest.mark.parametrize("name", CREDITS)
@FEW
@given(rewards=reward_arrays, mask=masks)
def test_group_credit_is_finite_zero_off_the_mask_and_constant_on_it(name, rewards, mask):
    advantages = np.asarray(CREDITS[name](jnp.asarray(rewards), trajectory(mask)))
    assert np.isfinite(advantages).all()
    assert (advantages[~mask] == 0).all()
    for row, acted in zip(advantages, mask):
        assert len(set(row[acted].tolist())) <= 1


@FEW
@given(arrays(np.float32, 6, elements=small), st.floats(0.5, 4), st.floats(-5, 5))
def test_group_relative_does_not_see_scale_and_shift(values, scale, shift):
    groups = values.reshape(2, 3)
    assume((np.ptp(groups, axis=1) > 0.1).all())
    traj = trajectory(np.ones((6, 2), bool))
    moved = CREDITS["no_epsilon"](outcomes(scale * values + shift), traj)
    np.testing.assert_allclose(moved, CREDITS["no_epsilon"](outcomes(values), traj), atol=1e-3)


def test_leave_one_out_by_hand():
    traj = trajectory(np.ones((3, 2), bool))
    advantages = credit.leave_one_out(outcomes([1.0, 2.0, 6.0]), traj, group_size=3)
    np.testing.assert_allclose(advantages[:, 0], [1 - 4, 2 - 3.5, 6 - 1.5], rtol=1e-6)


def test_leave_one_out_log_mean_by_hand():
    likelihoods = np.array([0.1, 0.2, 0.6, 1e-30])
    traj = trajectory([[1, 1], [0, 1], [1, 1], [1, 1]])
    advantages = credit.leave_one_out_log_mean(outcomes(np.log(likelihoods)), traj, group_size=4)
    others = [np.delete(likelihoods, i).mean() for i in range(4)]
    expected = 4 * (np.log(likelihoods.mean()) - np.log(others))
    np.testing.assert_allclose(advantages[:, 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(advantages[:, 0], advantages[:, 1].at[1].set(0.0))


def test_leave_one_out_log_mean_far_below_the_smallest_float():
    """Of e^-1000 and two of e^-1100 only the first counts: log 1/3 - log e^-100, log 1/3 - log 1/2."""
    traj = trajectory([[1, 1], [1, 1], [1, 1], [0, 0]])  # the fourth row counts nowhere
    rewards = outcomes([-1000.0, -1100.0, -1100.0, 0.0])
    advantages = credit.leave_one_out_log_mean(rewards, traj, group_size=4)
    expected = [3 * (100 - np.log(3)), 3 * np.log(2 / 3), 3 * np.log(2 / 3), 0.0]
    np.testing.assert_allclose(advantages[:, 0], expected, rtol=1e-4)


def test_groups_must_fill_the_batch():
    with pytest.raises(ValueError, match="batch of 4 rows is not a multiple of 3"):
        credit.leave_one_out(jnp.zeros((4, 2)), trajectory(np.ones((4, 2))), group_size=3)


# --- by batch ---


def test_batch_normalised_by_hand():
    traj = trajectory([[1, 1], [0, 1]])
    # Returns 3, 2 and 1: mean 2, deviation sqrt(2/3).
    advantages = credit.batch_normalised(jnp.array([[1.0, 2.0], [9.0, 1.0]]), traj)
    one = np.sqrt(1.5)
    np.testing.assert_allclose(advantages, [[one, 0.0], [0.0, -one]], rtol=1e-5, atol=1e-6)


def test_batch_normalised_discounts():
    traj = trajectory([[1, 1]])
    # Returns 0.5 * 4 = 2 and 4: mean 3, deviation 1.
    advantages = credit.batch_normalised(jnp.array([[0.0, 4.0]]), traj, discount=0.5)
    np.testing.assert_allclose(advantages, [[-1.0, 1.0]], rtol=1e-5)


def test_reinforce_plus_plus_baseline_by_hand():
    # Less the group means: -1, 1, -3, 3; each row has as many tokens: deviation sqrt(5).
    traj = trajectory(np.ones((4, 2), bool))
    advantages = credit.reinforce_plus_plus_baseline(
        outcomes([1.0, 3.0, 10.0, 16.0]), traj, group_size=2
    )
    np.testing.assert_allclose(advantages[:, 1], np.array([-1, 1, -3, 3]) / 5**0.5, rtol=1e-5)


@FEW
@given(reward_arrays, reward_arrays, masks)
def test_whitened_has_mean_0_and_deviation_1_over_the_mask(rewards, values, mask):
    traj = trajectory(mask, values=values)
    plain = np.asarray(gae(jnp.asarray(rewards), traj))
    assume(mask.sum() > 1 and np.ptp(plain[mask]) > 0.1)
    advantages = np.asarray(whitened_gae(jnp.asarray(rewards), traj))
    np.testing.assert_allclose(advantages[mask].mean(), 0.0, atol=1e-4)
    np.testing.assert_allclose(advantages[mask].std(), 1.0, rtol=1e-4)
    assert (advantages[~mask] == 0).all()


def test_whitened_passes_settings_on_and_jits():
    traj = trajectory([[1, 1, 1]], values=[[0.0, 0.0, 0.0]])
    whitened = jax.jit(partial(credit.whitened(credit.gae), discount=1.0, lam=0.0))
    # One-step errors 0, 0, 3: mean 1, deviation sqrt(2).
    advantages = whitened(jnp.array([[0.0, 0.0, 3.0]]), traj)
    np.testing.assert_allclose(advantages, np.array([[-1, -1, 2]]) / 2**0.5, rtol=1e-5)
