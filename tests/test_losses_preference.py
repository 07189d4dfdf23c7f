"""Preference losses: pairs, rankings and single labelled responses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewardjax import losses
from rewardjax.statistics import Mean

FEW = settings(max_examples=15, deadline=None)
finite = st.floats(-20, 20, width=16)
differences = arrays(np.float32, 4, elements=finite).map(jnp.asarray)


def test_bradley_terry_by_hand():
    difference = jnp.array([0.0, np.log(3.0), -np.log(3.0)])
    np.testing.assert_allclose(
        losses.bradley_terry(difference), [np.log(2), np.log(4 / 3), np.log(4)], rtol=1e-6
    )


def test_bradley_terry_margin_must_be_exceeded():
    at_margin = losses.bradley_terry(jnp.array([2.0]), margin=jnp.array([2.0]))
    np.testing.assert_allclose(at_margin, [np.log(2)], rtol=1e-6)


def test_bradley_terry_is_finite_far_out():
    np.testing.assert_allclose(losses.bradley_terry(jnp.array([-1e4, 1e4])), [1e4, 0.0])


@FEW
@given(differences, finite, st.floats(0, 1))
def test_bradley_terry_is_symmetric_in_the_responses(difference, margin, probability):
    one = losses.bradley_terry(difference, margin=margin, probability=probability)
    other = losses.bradley_terry(-difference, margin=-margin, probability=1.0 - probability)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_bradley_terry_is_least_where_the_model_says_the_label(probability):
    best = jnp.log(probability / (1 - probability)).reshape(1)
    gradient = jax.grad(lambda d: losses.bradley_terry(d, probability=probability)[0])(best)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_items_can_be_weighted():
    items = losses.bradley_terry(jnp.array([0.0, np.log(3.0)]))
    mean = Mean.of(items, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(mean.value, (3 * np.log(2) + np.log(4 / 3)) / 4, rtol=1e-6)


def test_hinge_by_hand():
    np.testing.assert_allclose(
        losses.hinge(jnp.array([2.0, 0.25, -1.0]), margin=1.5), [0.0, 1.25, 2.5]
    )


def test_ipo_by_hand_and_least_at_half_over_beta():
    np.testing.assert_allclose(losses.ipo(jnp.array([5.0, 7.0, 0.0]), 0.1), [0.0, 4.0, 25.0])


def test_log_ratio_sums_over_the_mask():
    logprobs, reference = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[-2.0, -2.5, jnp.nan]])
    mask = jnp.array([[True, True, False]])
    np.testing.assert_allclose(losses.log_ratio(logprobs, reference, mask), [1.5])


def test_dpo_by_hand_and_its_gradient():
    policy, rejected = jnp.array([-4.0]), jnp.array([-6.0])
    reference = (jnp.array([-5.0]), jnp.array([-5.0]))

    def loss(chosen, smoothing=0.0):
        return losses.dpo(chosen, rejected, *reference, beta=0.5, label_smoothing=smoothing)[0]

    value, gradient = jax.value_and_grad(loss)(policy)
    s = 1 / (1 + np.exp(-0.5 * 2.0))  # log-ratios 1 and -1
    np.testing.assert_allclose(value, -np.log(s), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.5 * (1 - s)], rtol=1e-5)
    smoothed = -0.9 * np.log(s) - 0.1 * np.log(1 - s)
    np.testing.assert_allclose(loss(policy, 0.1), smoothed, rtol=1e-6)


def test_kto_reference_point_is_clamped_masked_and_without_gradient():
    mismatched = jnp.array([1.0, 3.0, -100.0])
    assert losses.kto_reference_point(mismatched) == 0.0
    counted = jnp.array([True, True, False])
    assert losses.kto_reference_point(mismatched, counted) == 2.0
    gradient = jax.grad(lambda x: losses.kto_reference_point(x, counted))(mismatched)
    np.testing.assert_array_equal(gradient, 0.0)


def test_kto_by_hand():
    log_ratios, desirable = jnp.array([3.0, 3.0, 1.0]), jnp.array([True, False, True])
    values = losses.kto(log_ratios, desirable, jnp.float32(1.0), beta=0.5, undesirable_weight=2.0)
    s = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(values, [1 - s, 2 * s, 0.5], rtol=1e-6)


def test_plackett_luce_by_hand():
    scores = jnp.log(jnp.array([[1.0, 3.0, 2.0]]))
    value = losses.plackett_luce(scores, jnp.array([[1, 2, 0]]))
    np.testing.assert_allclose(value, [-np.log(3 / 6 * 2 / 3)], rtol=1e-6)


@FEW
@given(arrays(np.float32, 4, elements=finite))
def test_plackett_luce_probabilities_add_up(scores):
    rankings = jnp.array(list(itertools.permutations(range(4))))
    repeated = jnp.broadcast_to(jnp.asarray(scores), rankings.shape)
    probabilities = jnp.exp(-losses.plackett_luce(repeated, rankings))
    np.testing.assert_allclose(jnp.sum(probabilities), 1.0, rtol=1e-4)


@FEW
@given(differences)
def test_plackett_luce_of_two_is_bradley_terry(difference):
    scores = jnp.stack([jnp.zeros(4), difference], axis=1)
    ranking = jnp.tile(jnp.array([1, 0]), (4, 1))
    np.testing.assert_allclose(
        losses.plackett_luce(scores, ranking),
        losses.bradley_terry(difference),
        rtol=1e-5,
        atol=1e-6,
    )


def test_logit_regression_by_hand():
    p = jnp.array([0.75, 0.5, 1.0, 0.0])
    difference = jnp.array([np.log(3.0) + 2.0, -1.0, np.log(99.0), -np.log(99.0)])
    found = losses.logit_regression(difference, p, smallest=0.01)
    np.testing.assert_allclose(found, [4.0, 1.0, 0.0, 0.0], atol=1e-4)


@FEW
@given(differences, st.floats(0, 1))
def test_logit_regression_is_symmetric_in_the_responses(difference, probability):
    p = jnp.full(4, probability)
    np.testing.assert_allclose(
        losses.logit_regression(difference, p),
        losses.logit_regression(-difference, 1 - p),
        rtol=1e-3,
        atol=1e-3,
    )


def test_logit_regression_of_dpos_margin_is_ipo_where_the_logit_is_one_half():
    ratios = jnp.array([0.3, -2.0])
    p = jax.nn.sigmoid(jnp.full(2, 0.5))
    found = losses.logit_regression(0.2 * ratios, p)
    np.testing.assert_allclose(found, 0.2**2 * losses.ipo(ratios, 0.2), rtol=1e-5)
