import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import rewards
from rewardjax.rewards import filters

MASK = jnp.ones((10, 2), bool)


def test_groups_that_always_or_never_succeed_leave_the_batch():
    outcomes = jnp.array([1.0, 0, 0, 0, 0, 1, 1, 1, 1, 0])  # means of groups of five: 0.2, 0.8
    reward = rewards.outcome(outcomes, MASK)
    inside = rewards.within_mean(reward, 5, 0.2, 0.8)
    np.testing.assert_array_equal(inside.applicable, np.ones(10, bool))
    np.testing.assert_array_equal(inside.steps, reward.steps)
    lower = rewards.within_mean(reward, 5, 0.3, 0.8)
    np.testing.assert_array_equal(lower.applicable, [False] * 5 + [True] * 5)
    np.testing.assert_array_equal(lower.steps[:5], np.zeros((5, 2)))


def test_rows_that_do_not_apply_are_not_in_the_mean():
    applicable = jnp.array([True] + [False] * 4 + [True] * 5)
    outcomes = jnp.array([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    reward = rewards.outcome(outcomes, MASK, applicable=applicable)
    found = rewards.within_mean(reward, 5, 0.2, 0.8)
    np.testing.assert_array_equal(found.applicable, [False] * 5 + [True] * 5)


def test_a_range_the_wrong_way_round_is_refused():
    reward = rewards.outcome(jnp.zeros(10), MASK)
    with pytest.raises(ValueError, match=r"expected low <= high, found 0\.8 and 0\.2"):
        rewards.within_mean(reward, 5, 0.8, 0.2)


SCORES = jnp.array([0.0, 3.0, 1.0, 2.0, -1.0, 5.0, 4.0, 8.0, 6.0, 7.0])  # two groups of five
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [
        (filters.all_ranks, [1, 3, 2, 0, 4, 7, 9, 8, 5, 6]),
        (filters.best, [1, 7]),
        (filters.best_and_worst, [1, 4, 7, 6]),
        (filters.middle, [3, 2, 0, 9, 8, 5]),
        (filters.drawn((0.0, 0.0, 2.0, 0.0, 0.0)), [2] * 5 + [8] * 5),
    ],
)
def test_rows_stay_by_their_rank_in_the_group(ranks, rows):
    np.testing.assert_array_equal(rewards.kept_rows(KEY, SCORES, 5, ranks), rows)


def test_the_best_is_kept_with_any_other_as_often():
    scores = jnp.tile(SCORES[:5], 4000)
    rows = rewards.kept_rows(KEY, scores, 5, filters.best_and_random).reshape(-1, 2) % 5
    np.testing.assert_array_equal(rows[:, 0], 1)
    share = np.bincount(rows[:, 1], minlength=5) / 4000
    np.testing.assert_allclose(share, [0.25, 0, 0.25, 0.25, 0.25], atol=0.03)


def test_rows_are_drawn_with_replacement_by_the_weights_of_their_ranks():
    scores = jnp.tile(SCORES[:5], 2000)
    rows = rewards.kept_rows(KEY, scores, 5, filters.drawn((4, 1, 1, 1, 1))) % 5
    share = np.bincount(rows, minlength=5) / len(rows)
    np.testing.assert_allclose(share, [1 / 8, 1 / 2, 1 / 8, 1 / 8, 1 / 8], atol=0.02)


def test_equal_scores_are_ranked_at_random():
    rows = rewards.kept_rows(KEY, jnp.zeros(9000), 3, filters.best) % 3
    np.testing.assert_allclose(np.bincount(rows) / 3000, [1 / 3] * 3, atol=0.03)


def test_weights_that_cannot_be_drawn_by_are_refused():
    for weights in ((0.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="weights: expected numbers of at least 0, some above"):
            filters.drawn(weights)
    with pytest.raises(ValueError, match="weights: expected one for each of 5, found 2"):
        rewards.kept_rows(KEY, SCORES, 5, filters.drawn((1.0, 1.0)))
