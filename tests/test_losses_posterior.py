"""Posterior matching: weights and losses by hand, and what their gradients are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import losses
from rewardjax.losses.posterior import (
    no_baseline,
    posterior_weights,
    self_normalised,
    self_normalised_kl,
    unnormalised,
    weighted_imitation,
)

RATIOS = jnp.array([[0.2, -1.0, 0.7], [0.0, 0.5, -0.5]])
TARGET = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]])


def gradient(loss):
    return jax.grad(lambda x: jnp.sum(loss(x)))(RATIOS)


def test_weights_by_hand():
    rewards = jnp.log(jnp.array([[1.0, 3.0]]))
    np.testing.assert_allclose(posterior_weights(rewards, 1.0), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(posterior_weights(rewards, 0.5), [[0.1, 0.9]], rtol=1e-6)
    prior = jnp.log(jnp.array([[6.0, 1.0]]))  # p / q'
    np.testing.assert_allclose(posterior_weights(rewards, 1.0, prior), [[2 / 3, 1 / 3]], rtol=1e-6)


def test_policys_weights_by_hand():
    ratios = jnp.log(jnp.array([[1.0, 3.0]]))
    np.testing.assert_allclose(self_normalised(ratios), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(unnormalised(ratios), [[0.5, 1.5]], rtol=1e-6)


def test_kl_is_zero_where_the_weights_agree_and_known_elsewhere():
    shifted = jnp.log(jnp.array([[0.5, 0.3, 0.2]])) + 7.0
    np.testing.assert_allclose(self_normalised_kl(shifted, TARGET[:1]), [0.0], atol=1e-6)
    one_hot = jnp.array([[0.0, 1.0]])
    found = self_normalised_kl(jnp.log(jnp.array([[1.0, 3.0]])), one_hot)
    np.testing.assert_allclose(found, [np.log(4 / 3)], rtol=1e-6)


def test_the_gradient_of_the_kl_is_policys_weights_less_the_targets():
    found = gradient(lambda x: self_normalised_kl(x, TARGET))
    np.testing.assert_allclose(found, jax.nn.softmax(RATIOS) - TARGET, atol=1e-6)
    same = gradient(lambda x: weighted_imitation(x, TARGET, self_normalised))
    np.testing.assert_allclose(found, same, atol=1e-6)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [(no_baseline, -TARGET), (unnormalised, jnp.exp(RATIOS) / 3 - TARGET)],
)
def test_gradients_of_the_relatives(baseline, expected):
    found = gradient(lambda x: weighted_imitation(x, TARGET, baseline))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_responses_and_a_sure_target_are_dpo():
    ratios = jnp.array([[1.3, -0.4], [-2.0, 0.1]])
    winner = posterior_weights(jnp.array([[2.0, 1.0], [0.0, 3.0]]), 1e-6)

    def dpo(x):
        return losses.bradley_terry(jnp.array([x[0, 0] - x[0, 1], x[1, 1] - x[1, 0]]))

    np.testing.assert_allclose(self_normalised_kl(ratios, winner), dpo(ratios), atol=1e-6)
    found = jax.grad(lambda x: jnp.sum(self_normalised_kl(x, winner)))(ratios)
    np.testing.assert_allclose(found, jax.grad(lambda x: jnp.sum(dpo(x)))(ratios), atol=1e-6)


def test_no_gradient_reaches_the_target():
    found = jax.grad(lambda a: jnp.sum(self_normalised_kl(RATIOS, a)))(TARGET)
    np.testing.assert_array_equal(found, np.zeros((2, 3)))
