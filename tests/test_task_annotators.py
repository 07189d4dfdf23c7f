import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks import annotators

N = 40000  # the standard error of a share is at most 0.0025


def pairs(gap):
    return jnp.full(N, 0.3 + gap), jnp.full(N, 0.3)


@pytest.mark.parametrize(
    ("gap", "temperature", "flip_rate", "expected"),
    [
        (1.0, 1.0, 0.0, 1 / (1 + np.exp(-1))),
        (-0.5, 0.25, 0.0, 1 / (1 + np.exp(2))),
        (0.0, 1.0, 0.2, 0.5),
        (0.5, 0.0, 0.1, 0.9),
        (-0.5, 0.0, 0.0, 0.0),
        (np.log(3), 1.0, 0.1, 0.9 * 0.75 + 0.1 * 0.25),
    ],
)
def test_comparisons_have_the_noise_they_name(gap, temperature, flip_rate, expected):
    noise = {"temperature": temperature, "flip_rate": flip_rate}
    probability = annotators.preference_probability(*pairs(gap), **noise)
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    labels = jax.jit(annotators.compare)(jax.random.key(0), *pairs(gap), **noise)
    assert float(labels.mean()) == pytest.approx(expected, abs=0.012)


def test_a_tie_without_noise_is_a_coin():
    probability = annotators.preference_probability(*pairs(0.0), temperature=0.0)
    np.testing.assert_array_equal(probability, 0.5)


def test_probabilities_of_the_two_orders_add_to_one():
    a, b = jax.random.normal(jax.random.key(0), (2, 50))
    forward = annotators.preference_probability(a, b, temperature=0.3, flip_rate=0.1)
    backward = annotators.preference_probability(b, a, temperature=0.3, flip_rate=0.1)
    np.testing.assert_allclose(forward + backward, 1.0, atol=1e-6)


def test_magnitude_by_hand():
    a = jnp.asarray([0.0, 0.1, -0.1, 0.25, 0.3, 0.5, 2.0, -2.0])
    strength = annotators.magnitude(a, jnp.zeros(8), (0.25, 0.5))
    assert strength.tolist() == [0, 1, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("gap", "strength", "right"), [(0.1, 1, 0.7), (-0.3, 2, 0.9), (0.8, 3, 0.98), (0.0, 0, 0.5)]
)
def test_close_pairs_are_labelled_worse(gap, strength, right):
    draw = jax.jit(annotators.compare_with_magnitude)
    labels, strengths = draw(jax.random.key(1), *pairs(gap))
    assert set(strengths.tolist()) == {strength}
    expected = right if gap >= 0 else 1 - right
    assert float(labels.mean()) == pytest.approx(expected, abs=0.012)


def test_ratings_round_and_clip():
    utility = jnp.asarray([-3.0, 0.4, 0.6, 2.2, 3.9, 9.0])
    exact = annotators.rate(jax.random.key(0), utility, noise=0.0)
    assert exact.tolist() == [0, 0, 1, 2, 4, 4]
    assert annotators.rate(jax.random.key(0), utility, low=1, high=3, noise=0.0).tolist() == [
        1,
        1,
        1,
        2,
        3,
        3,
    ]


def test_rating_noise_has_its_standard_deviation():
    rate = jax.jit(annotators.rate, static_argnames=("low", "high"))
    ratings = np.asarray(rate(jax.random.key(0), jnp.full(N, 50.0), low=0, high=100, noise=5.0))
    assert ratings.mean() == pytest.approx(50.0, abs=0.12)
    assert ratings.std() == pytest.approx(np.sqrt(25 + 1 / 12), rel=0.02)  # rounding adds 1/12
    # N(2, 0.5) rounds to 2 with P(|z| < 1) = 0.6827
    middle = np.asarray(rate(jax.random.key(0), jnp.full(N, 2.0), noise=0.5))
    assert (middle == 2).mean() == pytest.approx(0.6827, abs=0.012)
    assert set(middle) <= {0, 1, 2, 3, 4}


def test_bad_arguments_are_named():
    key, a, b = jax.random.key(0), jnp.zeros(2), jnp.ones(2)
    with pytest.raises(ValueError, match="flip_rates: expected 2 entries, found 3"):
        annotators.compare_with_magnitude(key, a, b, bins=(0.5,))
    with pytest.raises(ValueError, match="low: expected less than high = 4, found 4"):
        annotators.rate(key, a, low=4)


def test_votes_of_a_group():
    utility = jnp.array([[0.0, np.log(3.0), 9.0]])
    votes = np.asarray(annotators.vote(jax.random.key(0), utility, 2000, annotators.compare))
    assert votes.shape == (1, 3, 3)
    np.testing.assert_array_equal(votes + votes.transpose(0, 2, 1), [2000 * (1 - np.eye(3))])
    # 0.0097 of standard error
    np.testing.assert_allclose(votes[0, 1, 0] / 2000, 0.75, atol=0.03)
    assert votes[0, 2, 0] > 1990
