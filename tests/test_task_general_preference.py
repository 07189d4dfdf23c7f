"""Preferences in circles: the table, exact win rates, judgements, and the game's equilibrium."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.evaluation.exploitability import matrix_exploitability, symmetric_equilibrium
from rewardjax.tasks.general_preference import GeneralPreference, expected_win_rate, judge_all

WHEEL = GeneralPreference(prompts=2, blocks=1, cyclic=float(np.log(9)), transitive=0.0)


def test_rock_paper_scissors_by_hand():
    table = WHEEL.table(jax.random.key(0))
    row = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
    np.testing.assert_allclose(table, [row, row], rtol=1e-5)
    rock, paper = jnp.eye(3)[jnp.array([0, 0])], jnp.full((2, 3), 1 / 3)
    np.testing.assert_allclose(expected_win_rate(table, rock, paper), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        expected_win_rate(table, rock, jnp.eye(3)[jnp.array([1, 2])]), [0.9, 0.1], rtol=1e-5
    )


def test_what_one_wins_the_other_loses_and_blocks_differ_by_utility_alone():
    world = GeneralPreference(prompts=3, blocks=2, cyclic=2.0, transitive=1.0)
    table = np.asarray(world.table(jax.random.key(1)), np.float64)
    np.testing.assert_allclose(table + table.transpose(0, 2, 1), np.ones((3, 6, 6)), atol=1e-6)
    odds = np.log(table / (1 - table))
    np.testing.assert_allclose(odds[:, 0, 1] + odds[:, 1, 2] + odds[:, 2, 0], 3 * 2.0, atol=1e-5)
    np.testing.assert_allclose(odds[:, 0, 3] + odds[:, 3, 1] + odds[:, 1, 0], -2.0, atol=1e-5)


def test_a_world_without_prompts_is_refused():
    with pytest.raises(ValueError, match="prompts: expected 1 or more, found 0"):
        GeneralPreference(prompts=0)


def test_each_pair_is_judged_once_and_as_often_as_the_table_says():
    table = WHEEL.table(jax.random.key(0))
    prompt, response = jnp.zeros(4000, int), jnp.tile(jnp.array([0, 1, 0]), (4000, 1))
    wins = np.asarray(judge_all(jax.random.key(2), table, prompt, response))
    assert not wins[:, range(3), range(3)].any()
    off = ~np.eye(3, dtype=bool)
    assert (wins ^ wins.transpose(0, 2, 1))[:, off].all()
    # 4000 draws: 0.008 of standard error at most.
    np.testing.assert_allclose(wins.mean(0)[0], [0, 0.9, 0.5], atol=0.03)


def test_self_play_finds_the_equilibria_of_known_games():
    # Rock wins twice as much: 1/4, 1/2, 1/4 makes all actions worth the same.
    payoffs = jnp.array([[0.0, -1.0, 2.0], [1.0, 0.0, -1.0], [-2.0, 1.0, 0.0]])
    found = symmetric_equilibrium(jnp.stack([payoffs, payoffs[::-1, ::-1].T]), steps=8000)
    np.testing.assert_allclose(found[0], [0.25, 0.5, 0.25], atol=0.02)
    np.testing.assert_allclose(np.sum(found, axis=-1), [1, 1], rtol=1e-5)
    dominant = symmetric_equilibrium(jnp.array([[0.5, 0.8], [0.2, 0.5]]), steps=8000)
    assert dominant[0] > 0.97
    assert float(matrix_exploitability(payoffs, found[0], found[0])) < 0.05
