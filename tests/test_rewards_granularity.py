"""Token rewards and when they are told, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import rewards

# A prompt of one token, five acted steps with a gap; two steps; none.
MASK = jnp.array([[0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0], [0] * 7], bool)
VALUES = jnp.array([[9.0, 1, 2, 9, 4, 8, 16], [9, 1, 2, 9, 9, 9, 9], [9] * 7])


def test_the_log_ratio_is_scaled_then_clipped():
    logprobs = jnp.array([[-9.0, -1.0, -1.0, -9.0, -1.0, -5.0, -3.0]])
    reference = jnp.array([[jnp.nan, -2.0, -6.0, 0.0, -0.5, 0.0, -3.0]])
    found = rewards.clipped_log_ratio(logprobs, reference, MASK[:1], scale=0.05, clip=0.1)
    np.testing.assert_allclose(found, [[0, 0.05, 0.1, 0, -0.025, -0.1, 0]], rtol=1e-6)


def test_chunks_are_told_at_their_last_step():
    pairs = [[0, 0, 3, 0, 0, 12, 16], [0, 0, 3, 0, 0, 0, 0], [0] * 7]
    np.testing.assert_array_equal(rewards.in_chunks(VALUES, MASK, 2), pairs)
    threes = [[0, 0, 0, 0, 7, 0, 24], [0, 0, 3, 0, 0, 0, 0], [0] * 7]
    np.testing.assert_array_equal(rewards.in_chunks(VALUES, MASK, 3), threes)


def test_chunks_of_one_are_tokens_and_long_ones_the_end():
    tokens = jnp.where(MASK, VALUES, 0.0)
    np.testing.assert_array_equal(rewards.in_chunks(VALUES, MASK, 1), tokens)
    end = [[0, 0, 0, 0, 0, 0, 31], [0, 0, 3, 0, 0, 0, 0], [0] * 7]
    np.testing.assert_array_equal(rewards.at_end(VALUES, MASK), end)
    np.testing.assert_array_equal(rewards.in_chunks(VALUES, MASK, 7), end)


def test_what_is_taken_back_at_the_end_leaves_nothing():
    found = rewards.taken_back(VALUES, MASK)
    np.testing.assert_array_equal(found[0], [0, 1, 2, 0, 4, 8, 16 - 31])
    np.testing.assert_array_equal(jnp.sum(found, axis=1), [0, 0, 0])


def test_a_chunk_of_no_step_is_refused():
    with pytest.raises(ValueError, match="size: expected at least 1 step, found 0"):
        rewards.in_chunks(VALUES, MASK, 0)
