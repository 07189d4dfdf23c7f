"""Likelihoods of a reference answer: values, gradients, and rows that have no answer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.rewards import likelihood

PROBABILITIES = np.array(
    [[0.5, 0.25, 0.9, 0.1], [0.2, 0.5, 0.5, 0.4], [0.3, 0.3, 0.3, 0.3], [0.7, 0.5, 0.1, 0.1]],
    np.float32,
)
MASK = jnp.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], bool)
LOGPROBS = jnp.log(PROBABILITIES)
# 0.25 * 0.9 and 0.2 * 0.4; the third row has no answer; the last has one token.
ANSWERS = np.array([0.225, 0.08, 1.0, 0.5])
PAIRS = partial(likelihood.group_logprob, group_size=2)
BY_ROW = {
    "answer_logprob": np.log(ANSWERS),
    "answer_probability": ANSWERS,
    "mean_probability": np.array([0.575, 0.3, 0.0, 0.5]),
    "mean_logprob": np.array([np.log(0.225) / 2, np.log(0.08) / 2, 0.0, np.log(0.5)]),
}
ALL = [*(getattr(likelihood, name) for name in BY_ROW), PAIRS]


@pytest.mark.parametrize("name", BY_ROW)
def test_values_by_hand(name):
    values = getattr(likelihood, name)(LOGPROBS, MASK)
    np.testing.assert_allclose(values, BY_ROW[name], rtol=1e-5)


def test_group_logprob_by_hand():
    # (0.225 + 0.08) / 2 = 0.1525 and (1 + 0.5) / 2 = 0.75
    np.testing.assert_allclose(PAIRS(LOGPROBS, MASK), np.log([0.1525] * 2 + [0.75] * 2), rtol=1e-5)
    whole = likelihood.group_logprob(LOGPROBS, MASK, group_size=4)
    np.testing.assert_allclose(whole, np.log([1.805 / 4] * 4), rtol=1e-5)


def test_a_group_of_one_is_the_row_itself():
    alone = likelihood.group_logprob(LOGPROBS, MASK, group_size=1)
    np.testing.assert_allclose(alone, likelihood.answer_logprob(LOGPROBS, MASK), rtol=1e-6)


def test_group_logprob_is_at_least_the_mean_of_the_rows():
    """Jensen: the bound from several thoughts is the tighter one."""
    rows = np.asarray(likelihood.answer_logprob(LOGPROBS, MASK)).reshape(2, 2).mean(axis=1)
    assert np.all(np.asarray(PAIRS(LOGPROBS, MASK))[::2] > rows)


def test_a_batch_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(ValueError, match="4 rows is not a multiple of 3"):
        likelihood.group_logprob(LOGPROBS, MASK, group_size=3)


def gradient(reward, row):
    return np.asarray(jax.grad(lambda x: reward(x, MASK)[row])(LOGPROBS))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("answer_logprob", [0, 1, 1, 0]),
        ("answer_probability", [0, 0.225, 0.225, 0]),
        ("mean_probability", [0, 0.125, 0.45, 0]),
        ("mean_logprob", [0, 0.5, 0.5, 0]),
    ],
)
def test_gradients_by_hand(name, expected):
    found = gradient(getattr(likelihood, name), 0)
    np.testing.assert_allclose(found, [expected, [0] * 4, [0] * 4, [0] * 4], rtol=1e-5)


def test_the_gradient_of_a_group_is_shared_by_likelihood():
    first, second = 0.225 / 0.305, 0.08 / 0.305
    expected = [[0, first, first, 0], [second, 0, 0, second], [0] * 4, [0] * 4]
    np.testing.assert_allclose(gradient(PAIRS, 0), expected, rtol=1e-5)


@pytest.mark.parametrize("reward", ALL)
def test_nothing_off_the_mask_matters_not_even_infinities(reward):
    wild = jnp.where(MASK, LOGPROBS, -jnp.inf).at[0, 0].set(jnp.nan)
    np.testing.assert_array_equal(reward(wild, MASK), reward(LOGPROBS, MASK))
    slope = jax.grad(lambda x: jnp.sum(reward(x, MASK)))(wild)
    assert np.isfinite(slope).all()
    assert not np.any(np.where(MASK, 0.0, slope))


@pytest.mark.parametrize("reward", ALL)
def test_a_row_without_an_answer_has_a_constant(reward):
    nothing = jnp.zeros_like(MASK)
    constant = 1.0 if reward is likelihood.answer_probability else 0.0
    np.testing.assert_array_equal(reward(LOGPROBS, nothing), np.full(4, constant))
    assert not np.any(jax.grad(lambda x: jnp.sum(reward(x, nothing)))(LOGPROBS))


def test_long_answers_underflow_only_where_a_probability_is_taken():
    logprobs, mask = jnp.full((2, 30), -40.0).at[1].set(-41.0), jnp.ones((2, 30), bool)
    np.testing.assert_array_equal(likelihood.answer_probability(logprobs, mask), [0, 0])
    assert not np.any(jax.grad(lambda x: likelihood.answer_probability(x, mask)[0])(logprobs))
    np.testing.assert_allclose(likelihood.answer_logprob(logprobs, mask), [-1200, -1230])
    np.testing.assert_allclose(likelihood.mean_logprob(logprobs, mask), [-40, -41])
    # The second row is e^-30 times as likely: the group's mean is half of the first.
    np.testing.assert_allclose(PAIRS(logprobs, mask), [-1200 - np.log(2)] * 2, rtol=1e-6)
    slope = jax.grad(lambda x: PAIRS(x, mask)[0])(logprobs)
    np.testing.assert_allclose(slope, [[1] * 30, [0] * 30], atol=1e-6)


@pytest.mark.parametrize("reward", ALL)
def test_half_precision_is_summed_in_float32(reward):
    logprobs, mask = jnp.full((2, 1000), -0.001, jnp.bfloat16), jnp.ones((2, 1000), bool)
    values = reward(logprobs, mask)
    assert values.dtype == jnp.float32
    exact = reward(logprobs.astype(jnp.float32), mask)
    np.testing.assert_allclose(values, exact, rtol=1e-6)
