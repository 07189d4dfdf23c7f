"""Reward-guided decoding on a language model and a score that are tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.sampling.reward_guided import reward_guided_decode

STOP = 3
# Whatever was written: token 1 is likeliest, then 2, then the end, then 4.
LOGITS = jnp.log(jnp.array([1e-6, 0.5, 0.3, 0.15, 0.05]))
WORTH = jnp.array([0.0, 0.0, 1.0, -0.5, 9.0])


def logits(tokens, valid):
    return jnp.broadcast_to(LOGITS, (*tokens.shape, 5))


def score(tokens, valid):
    """The worth of all tokens that are there."""
    return jnp.sum(jnp.where(valid, WORTH[tokens], 0.0), axis=1)


@pytest.fixture(scope="module")
def decode():
    tokens = jnp.array([[4, 2, 4, 4, 4], [4, 1, 4, 4, 4]])
    made = jax.jit(
        lambda alpha, sign, top_k: reward_guided_decode(
            logits,
            score,
            tokens,
            tokens > 0,
            start=2,
            top_k=top_k,
            alpha=alpha,
            sign=sign,
            stop=STOP,
        ),
        static_argnums=2,
    )
    return made


@pytest.mark.parametrize(
    ("alpha", "sign", "top_k", "expected"),
    [
        (0.0, 1.0, 3, [2, 2, 2]),  # 4 would score more but is not among the three likeliest
        (0.0, 1.0, 4, [4, 4, 4]),
        (0.0, -1.0, 3, [STOP, 0, 0]),
        (0.0, -1.0, 2, [1, 1, 1]),
        (10.0, 1.0, 3, [1, 1, 1]),  # 10 log(0.5 / 0.3) = 5.1 is more than a score of 1
        (1.0, 1.0, 3, [2, 2, 2]),  # log(0.5 / 0.3) = 0.51 is less
    ],
)
def test_the_best_of_the_likely_tokens_is_written(decode, alpha, sign, top_k, expected):
    tokens, valid = decode(alpha, sign, top_k)
    np.testing.assert_array_equal(tokens, [[4, 2, *expected], [4, 1, *expected]])
    np.testing.assert_array_equal(valid, np.asarray(tokens) > 0)


def test_one_candidate_is_greedy_decoding(decode):
    np.testing.assert_array_equal(decode(0.0, 1.0, 1)[0][:, 2:], 1)
