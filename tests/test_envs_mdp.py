"""Finite MDPs: closed forms by hand, and every deterministic policy of thousands of small MDPs."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.envs.mdp import (
    MDP,
    action_value,
    advantage,
    centred,
    deterministic_transitions,
    expected_return,
    expected_reward,
    optimal_policy,
    optimal_value,
    policy_value,
    soft_optimal_policy,
    softmax_transitions,
    state_distribution,
    uniform_policy,
    without_rewards,
)

# Two states; action 0 stays, action 1 moves to the other. Only staying in state 1 pays, 1.
STAY_OR_MOVE = MDP(
    transition=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    reward=jnp.zeros((2, 2, 2)).at[1, 0, 1].set(1.0),
    initial=jnp.array([0.75, 0.25]),
    discount=0.5,
)


def reference_value(mdp, policy):
    """`V = (I - discount P)^-1 r` in float64; policy [..., state, action]."""
    transition, reward = np.float64(mdp.transition), np.float64(mdp.reward)
    flow = np.einsum("...sa,...sat->...st", policy, transition)
    gained = np.einsum("...sa,...sat,...sat->...s", policy, transition, reward)
    system = np.eye(flow.shape[-1]) - mdp.discount * flow
    return np.linalg.solve(system, gained[..., None])[..., 0]


def batch(seed, count, **settings):
    """`count` random MDPs."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(partial(random_mdp, **settings)))(keys)


def random_mdp(key, states, actions, discount, make=softmax_transitions):
    first, second = jax.random.split(key)
    mdp = without_rewards(make(first, states, actions), discount)
    return mdp.with_reward(jax.random.normal(second, mdp.transition.shape))


def test_two_states_by_hand():
    best = optimal_policy(STAY_OR_MOVE)
    np.testing.assert_array_equal(best, [[0, 1], [1, 0]])
    # 1 + 1/2 + 1/4 + ... = 2 from state 1; a step later, so half of it, from state 0.
    np.testing.assert_allclose(optimal_value(STAY_OR_MOVE), [1, 2], rtol=1e-6)
    np.testing.assert_allclose(expected_return(STAY_OR_MOVE, best), 0.75 * 1 + 0.25 * 2, rtol=1e-6)
    values = action_value(STAY_OR_MOVE, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(values, [[0.5, 1], [2, 0.5]], rtol=1e-6)


def test_the_uniform_policy_by_hand():
    # V0 = (V0 + V1) / 4 and V1 = 1/2 + (V0 + V1) / 4, so V0 = 1/4, V1 = 3/4.
    policy = uniform_policy(STAY_OR_MOVE)
    np.testing.assert_allclose(policy_value(STAY_OR_MOVE, policy), [0.25, 0.75], rtol=1e-6)
    expected = [[0.125 - 0.25, 0.375 - 0.25], [1.375 - 0.75, 0.125 - 0.75]]
    np.testing.assert_allclose(advantage(STAY_OR_MOVE, policy), expected, atol=1e-6)


def test_rewards_are_averaged_over_successors():
    mdp = without_rewards(jnp.full((2, 1, 2), 0.5), 0.9)
    mdp = mdp.with_reward(jnp.array([[[1.0, 3.0]], [[0.0, -4.0]]]))
    np.testing.assert_allclose(expected_reward(mdp), [[2], [-2]])
    np.testing.assert_allclose(mdp.initial, [0.5, 0.5])


def test_without_a_future_only_the_reward_counts():
    mdp = random_mdp(jax.random.key(0), 4, 3, 0.0)
    np.testing.assert_allclose(optimal_value(mdp), expected_reward(mdp).max(axis=1), rtol=1e-5)


@pytest.mark.parametrize("make", [softmax_transitions, deterministic_transitions])
def test_no_deterministic_policy_is_better(make):
    mdps = batch(1, 2000, states=3, actions=2, discount=0.9, make=make)
    chosen = np.array(list(itertools.product(range(2), repeat=3)))
    policies = np.eye(2)[chosen]
    values = np.stack([reference_value(mdps, policy) for policy in policies])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(optimal_value))(mdps), values.max(axis=0), atol=2e-5
    )


@pytest.mark.parametrize("discount", [0.5, 0.95, 0.99])
def test_values_satisfy_the_bellman_optimality_equation(discount):
    mdps = batch(2, 50, states=16, actions=4, discount=discount)
    values = jax.jit(jax.vmap(optimal_value))(mdps)
    backed_up = jax.vmap(action_value)(mdps, values).max(axis=-1)
    # Float32 resolves values of 1 / (1 - discount) to 1e-7 of that.
    np.testing.assert_allclose(values, backed_up, atol=1e-6 / (1 - discount))


def test_a_large_common_reward_does_not_blur_the_policy():
    mdps = batch(3, 100, states=8, actions=3, discount=0.99)
    plan = jax.jit(jax.vmap(optimal_policy))
    plain, raised = plan(mdps), plan(mdps.with_reward(mdps.reward + 100.0))
    lost = reference_value(mdps, np.float64(plain)) - reference_value(mdps, np.float64(raised))
    assert np.abs(lost).max() < 0.05
    np.testing.assert_allclose(np.mean(expected_reward(centred(STAY_OR_MOVE))), 0, atol=1e-7)


def test_equal_actions_end_at_once():
    mdp = without_rewards(softmax_transitions(jax.random.key(4), 6, 3), 0.99)
    np.testing.assert_array_equal(optimal_policy(mdp), np.eye(3)[np.zeros(6, int)])


def test_thresholds_make_successors_impossible():
    rows = softmax_transitions(jax.random.key(5), 100, 4, threshold=1.0)
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-5)
    # A standard normal is above 1 with probability 0.1587.
    assert abs(np.mean(rows > 0) - 0.1587) < 0.01
    assert softmax_transitions(jax.random.key(5), 100, 4).min() > 0
    nothing = softmax_transitions(jax.random.key(5), 4, 2, threshold=100.0)
    np.testing.assert_allclose(nothing, np.full((4, 2, 4), 0.25))


def test_deterministic_transitions_have_one_successor():
    rows = np.asarray(deterministic_transitions(jax.random.key(6), 8, 400))
    assert set(np.unique(rows)) == {0.0, 1.0}
    np.testing.assert_array_equal(rows.sum(axis=-1), 1)
    # 3200 draws of 8 successors: 400 each, with a standard deviation of 19.
    assert np.abs(rows.sum(axis=(0, 1)) - 400).max() < 95


@pytest.mark.parametrize("discount", [1.0, 1.5, -0.1, float("nan")])
def test_a_discount_outside_the_range_is_refused(discount):
    with pytest.raises(ValueError, match=r"discount: expected a number in \[0, 1\), found"):
        without_rewards(jnp.full((2, 1, 2), 0.5), discount)


def test_soft_optimal_policy_by_hand():
    """State 0: leave for state 1, or stay and earn log 7/3; state 1 is never left and earns nothing.

    Entropy alone is worth V1 = log 2 + V1 / 2 = 2 log 2, and V0 = log(exp(V1 / 2) + 7/3 exp(V0 / 2))
    = 2 log 3, since 9 = 2 + 7: the policy leaves with 2/9.
    """
    transition = jnp.array([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    reward = jnp.zeros((2, 2, 2)).at[0, 1, 0].set(np.log(7 / 3))
    mdp = MDP(transition, reward, jnp.array([1.0, 0.0]), 0.5)
    expected = [[2 / 9, 7 / 9], [1 / 2, 1 / 2]]
    np.testing.assert_allclose(soft_optimal_policy(mdp, 1.0), expected, rtol=1e-5)
    doubled = soft_optimal_policy(mdp.with_reward(2 * reward), 2.0)
    np.testing.assert_allclose(doubled, expected, rtol=1e-5)
    # Without a backup values are 0, and rewards alone count.
    once = soft_optimal_policy(mdp, 1.0, iterations=0)
    np.testing.assert_allclose(once, [[3 / 10, 7 / 10], [1 / 2, 1 / 2]], rtol=1e-5)


def test_where_a_policy_is_after_some_steps():
    policy = jnp.array([[0.5, 0.5], [0.75, 0.25]])
    expected = {0: [0.75, 0.25], 1: [0.4375, 0.5625], 2: [0.359375, 0.640625]}
    for steps, where in expected.items():
        np.testing.assert_allclose(state_distribution(STAY_OR_MOVE, policy, steps), where)
