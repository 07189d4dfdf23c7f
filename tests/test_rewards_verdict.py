"""Verdicts: read strictly, and only from a judgement's end."""

import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.rewards.verdict import UNPARSED, parse_verdict, verdict_reward

A, B, X = 7, 8, 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([X, X, X, A, X], 0),
        ([X, X, X, X, B], 1),
        ([X, X, A, B, X], UNPARSED),  # both
        ([X, X, X, X, X], UNPARSED),  # none
        ([X, A, X, X, X], UNPARSED),  # too early
        ([A, X, X, X, B], 1),  # an early one does not count against a late one
        ([X, X, B, X, B], 1),  # the same one twice
    ],
)
def test_one_tag_in_the_last_three_tokens(row, expected):
    tokens = jnp.array([row])
    found = parse_verdict(tokens, jnp.ones_like(tokens, bool), (A, B), tail=3)
    assert found.tolist() == [expected]


def test_prompts_and_padding_are_not_read():
    tokens = jnp.array([[A, X, X, B, X, A], [X, X, A, X, X, X], [A, A, A, A, A, A]])
    mask = jnp.array([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    # Row 2 was cut off behind its tag: its own last tokens are still its end. Row 3 wrote nothing.
    assert parse_verdict(tokens, mask, (A, B), tail=2).tolist() == [1, 0, UNPARSED]


def test_a_verdict_earns_one_and_everything_else_minus_one():
    verdicts, labels = jnp.array([0, 1, 1, UNPARSED]), jnp.array([0, 1, 0, 1])
    np.testing.assert_array_equal(verdict_reward(verdicts, labels), [1, 1, -1, -1])
