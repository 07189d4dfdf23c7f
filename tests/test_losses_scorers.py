"""Losses on what scorers' heads give: embeddings of preference, ratings, lists of scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import losses
from rewardjax.losses.ordinal import UNKNOWN


def test_preference_score_by_hand():
    a, b = jnp.array([1.0, 2.0, 0.0, 3.0]), jnp.array([4.0, -1.0, 2.0, 5.0])
    # 1 * -1 - 2 * 4 = -9 and 0 * 5 - 3 * 2 = -6
    np.testing.assert_allclose(losses.preference_score(a, b), -15.0)
    gates = jnp.array([2.0, 0.5])
    np.testing.assert_allclose(losses.preference_score(a, b, gates), -21.0)
    with pytest.raises(ValueError, match="even width, found 3"):
        losses.preference_score(a[:3], b[:3])


def test_preference_scores_are_antisymmetric_to_the_last_bit():
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = (jax.random.normal(key, (64, 6)) for key in keys[:2])
    gates = jax.random.uniform(keys[2], (64, 3))
    score = jax.jit(losses.preference_score)
    np.testing.assert_array_equal(score(a, b, gates), -score(b, a, gates))
    np.testing.assert_array_equal(score(a, a, gates), 0.0)


def test_a_cycle_has_a_table_and_a_constant_coordinate_is_bradley_terry():
    angles = 2 * jnp.pi * jnp.arange(3) / 3
    circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    table = losses.preference_table(circle)
    cycle = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) * np.sin(2 * np.pi / 3)
    np.testing.assert_allclose(table, cycle, atol=1e-6)
    r = jnp.array([0.5, 2.0, -1.0])
    flat = jnp.stack([r, jnp.full(3, 3.0)], axis=1)
    np.testing.assert_allclose(losses.preference_table(flat), 3 * (r[:, None] - r), rtol=1e-6)
    gated = losses.preference_table(circle, jnp.array([2.0]))
    np.testing.assert_allclose(gated, 2 * table, rtol=1e-6)


def test_gpo_is_least_at_the_step_of_multiplicative_weights():
    score = jnp.array([0.3, -0.2])
    np.testing.assert_allclose(losses.gpo(score / 0.1, score, beta=0.1), 0.0, atol=1e-9)
    found = losses.gpo(jnp.array([1.0, 1.0]), score, beta=0.5)
    np.testing.assert_allclose(found, [0.16, 1.96], rtol=1e-6)


def test_probability_of_a_higher_rating_by_counting():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 4)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (first, second))
    higher = sum(p[:, k] * q[:, j] for k in range(4) for j in range(k))
    found = losses.log_probability_higher(jnp.asarray(first), jnp.asarray(second))
    np.testing.assert_allclose(np.exp(found), higher, rtol=1e-5)
    cells = jnp.broadcast_to(jnp.tri(4, k=-1, dtype=bool), (5, 4, 4))
    by_cells = losses.ordinal(jnp.asarray(first), jnp.asarray(second), cells)
    np.testing.assert_allclose(by_cells, -np.log(higher), rtol=1e-5)


def test_ratings_start_below_one_half_and_stay_finite_when_certainly_wrong():
    zeros = jnp.zeros((1, 9))
    np.testing.assert_allclose(losses.ordinal(zeros, zeros), np.log(2.25), rtol=1e-6)
    low, high = jnp.array([[200.0, 0, 0]]), jnp.array([[0.0, 0, 200.0]])
    value, slope = jax.value_and_grad(lambda x: losses.ordinal(x, high)[0])(low)
    np.testing.assert_allclose(value, 400.0 - np.log(3.0), rtol=1e-5)  # of e^-400 there are three
    assert np.isfinite(slope).all()
    assert slope[0, 0] > 0 > slope[0, 2]


def test_the_gradient_pushes_the_two_ratings_apart():
    p, q = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.6, 0.3, 0.1])
    slopes = jax.grad(
        lambda p, q: jnp.exp(losses.log_probability_higher(jnp.log(p), jnp.log(q))), (0, 1)
    )(p, q)
    # dP/dp(k) = P(S' < k) and dP/dq(k) = P(S > k), each less its mean, as the sums stay 1.
    below, above = np.array([0, 0.6, 0.9]), np.array([0.8, 0.3, 0.0])
    np.testing.assert_allclose(slopes[0], below - 0.57, atol=1e-6)
    np.testing.assert_allclose(slopes[1], above - 0.57, atol=1e-6)


def test_regions_by_hand():
    labels = jnp.array([2, 1, 0, UNKNOWN]), jnp.array([0, 1, 2, 1])
    flooded = losses.region_cells(*labels, regions=3, levels=6)
    hard = losses.region_cells(*labels, regions=3, levels=6, flooded=False)
    block = np.zeros((6, 6), bool)
    block[4:, :2] = True
    np.testing.assert_array_equal(flooded[0], block)
    np.testing.assert_array_equal(hard[0], block)
    inside = np.zeros((6, 6), bool)
    inside[3, 2] = True
    np.testing.assert_array_equal(flooded[1], inside)
    inside[2:4, 2:4] = True
    np.testing.assert_array_equal(hard[1], inside)
    assert not flooded[2].any()
    np.testing.assert_array_equal(flooded[3], np.tri(6, k=-1, dtype=bool))
    uniform = jnp.zeros((4, 6))
    found = losses.ordinal(uniform, uniform, flooded)
    np.testing.assert_allclose(found, np.log([9.0, 36.0, 1.0, 36 / 15]), rtol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(losses.ordinal(x, uniform, flooded)))(uniform)
    np.testing.assert_array_equal(slope[2], 0.0)
    with pytest.raises(ValueError, match="multiple of 3 regions, found 7"):
        losses.region_cells(*labels, regions=3, levels=7)


def test_moments_of_a_rating():
    mean, variance = losses.rating_moments(jnp.log(jnp.array([[0.5, 0.0, 0.5], [0.2, 0.8, 0.0]])))
    np.testing.assert_allclose(mean, [2.0, 1.8], rtol=1e-6)
    np.testing.assert_allclose(variance, [1.0, 0.16], rtol=1e-5)


def test_a_list_of_two_is_bradley_terry_and_absent_responses_do_not_count():
    scores = jnp.array([[1.0, -0.5, 7.0], [0.0, 2.0, jnp.nan]])
    present = jnp.array([[True, True, False], [True, True, False]])
    best = jnp.array([0, 0])
    found = losses.listwise_cross_entropy(scores, best, present)
    np.testing.assert_allclose(found, losses.bradley_terry(scores[:, 0] - scores[:, 1]), rtol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(losses.listwise_cross_entropy(x, best, present)))(scores)
    np.testing.assert_array_equal(slope[:, 2], 0.0)
    full = losses.listwise_cross_entropy(scores[:1], jnp.array([2]))
    np.testing.assert_allclose(full, np.log(np.exp([-6.0, -7.5, 0]).sum()), rtol=1e-4)
