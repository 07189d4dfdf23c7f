"""Strengths from games: by hand, against Zermelo's own iteration, and bootstrap intervals."""

import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.evaluation.rankings import (
    bradley_terry_strengths,
    count_wins,
    elo,
    elo_ratings,
)

WINS = np.array([[0, 7, 4, 1], [3, 0, 6, 2], [2, 2, 0, 9], [1, 4, 3, 0]], np.float32)


def zermelo(wins, sweeps=5000):
    """The classical iteration, W_i / sum_j n_ij / (p_i + p_j), in float64."""
    wins = np.asarray(wins, np.float64)
    games, p = wins + wins.T, np.ones(len(wins))
    for _ in range(sweeps):
        p = wins.sum(1) / (games / (p[:, None] + p)).sum(1)
        p /= np.exp(np.mean(np.log(p)))
    return np.log(p)


def test_two_players_without_a_prior_are_their_odds():
    found = bradley_terry_strengths(jnp.array([[0.0, 6.0], [2.0, 0.0]]), prior=0.0)
    np.testing.assert_allclose(found, [np.log(3) / 2, -np.log(3) / 2], rtol=1e-5)


def test_newmans_iteration_finds_zermelos_strengths():
    found = bradley_terry_strengths(jnp.asarray(WINS), prior=0.0)
    np.testing.assert_allclose(found, zermelo(WINS), atol=1e-5)


def test_the_prior_is_games_against_a_player_of_strength_one():
    with_imagined = np.pad(WINS, (0, 1), constant_values=0.5)
    with_imagined[-1, -1] = 0
    expected = zermelo(with_imagined)[:-1]
    found = bradley_terry_strengths(jnp.asarray(WINS), prior=0.5)
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-5)


def test_a_batch_is_fitted_group_by_group_and_its_diagonal_is_not_read():
    other = WINS.T + 100 * np.eye(4, dtype=np.float32)
    found = bradley_terry_strengths(jnp.stack([WINS, other]), prior=0.0)
    np.testing.assert_allclose(found[0], -found[1], atol=1e-5)


def test_who_never_loses_and_who_never_plays_stay_finite():
    wins = np.zeros((4, 4), np.float32)
    wins[0, 1] = wins[0, 2] = 20
    found = np.asarray(bradley_terry_strengths(jnp.asarray(wins)))
    assert np.isfinite(found).all()
    assert found[0] == found.max()
    assert found[1] == found[2] == found.min()


def test_ties_are_half_wins_and_leave_equal_players_equal():
    found = bradley_terry_strengths(jnp.full((4, 4), 2.5))
    np.testing.assert_allclose(found, np.zeros(4), atol=1e-6)


def test_on_elos_scale_400_points_are_odds_of_ten():
    np.testing.assert_allclose(elo(np.array([np.log(10), 0.0])), [1200, 800])


def test_games_are_counted():
    wins = count_wins(np.array([0, 0, 2]), np.array([1, 1, 0]), np.array([1, 0.5, 0.25]), 3)
    np.testing.assert_array_equal(wins, [[0, 1.5, 0.75], [0.5, 0, 0], [0.25, 0, 0]])


def test_ratings_and_their_intervals():
    rng = np.random.default_rng(3)
    strength = np.array([0.0, 1.0, -1.0, 0.0])
    first = rng.integers(4, size=2000)
    second = (first + rng.integers(1, 4, size=2000)) % 4
    score = rng.random(2000) < 1 / (1 + np.exp(strength[second] - strength[first]))
    found = elo_ratings(first, second, score, 4, resamples=200)
    expected = 1000 + 400 / np.log(10) * strength
    assert (found.low < found.rating).all()
    assert (found.rating < found.high).all()
    np.testing.assert_allclose(found.rating, expected, atol=50)
    assert (found.high - found.low < 80).all()  # some 13 points of error with 1000 games each
    fewer = elo_ratings(first[:500], second[:500], score[:500], 4, resamples=200)
    assert (fewer.high - fewer.low > 1.5 * (found.high - found.low)).all()
    again = elo_ratings(first, second, score, 4, resamples=200)
    np.testing.assert_array_equal(again.low, found.low)


@pytest.mark.parametrize(
    ("first", "second", "score", "message"),
    [
        ([], [], [], "equally many games"),
        ([0], [3], [1], "players 0 to 2, found 0 to 3"),
        ([0, 1], [1, 1], [1, 1], "game 1 has player 1 on both sides"),
        ([0], [1], [2], r"\[0, 1\], found 2.0"),
    ],
)
def test_games_that_cannot_be(first, second, score, message):
    with pytest.raises(ValueError, match=message):
        count_wins(*(np.array(column, int) for column in (first, second, score)), 3)


def test_a_level_that_cannot_be():
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1, found 1"):
        elo_ratings(np.array([0]), np.array([1]), np.array([1.0]), 2, level=1)
