"""Lists of responses and their metrics, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.recipes.response_lists import (
    arranged,
    choosing,
    group_columns,
    list_metrics,
    order_metrics,
    written_lists,
)
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.trajectory import Trajectory

KEY = jax.random.key(5)
WORLD = PreferenceWorld(response_length=10, min_length=9, gaudy_max=1)


def test_lists_keep_their_responses_together_and_put_the_best_first():
    drawn = written_lists(WORLD, jax.random.key(0), 200, 4, (2, 4))
    lengths = np.asarray(drawn["valid"]).sum(axis=2)
    assert lengths.max() == 8
    assert (lengths.max(axis=1) <= 2 * lengths.min(axis=1) + 4).all()
    ends = np.take_along_axis(np.asarray(drawn["responses"]), lengths[..., None] - 1, axis=2)
    np.testing.assert_array_equal(ends, WORLD.eos)
    assert {2, 3, 4} <= set(lengths.min(axis=1))
    moved = arranged(drawn, jax.random.key(1), 0.5)
    best = np.asarray(moved["best"])
    assert np.mean(best == 0) == pytest.approx(0.5 + 0.5 / 4, abs=0.12)
    utility = np.asarray(moved["utility"])
    np.testing.assert_allclose(utility[range(200), best], utility.max(axis=1))
    for row in range(5):
        before = {tuple(x) for x in np.asarray(drawn["responses"][row])}
        assert {tuple(x) for x in np.asarray(moved["responses"][row])} == before
    places = np.bincount(np.asarray(arranged(drawn, jax.random.key(2))["best"]), minlength=4)
    assert places.min() > 25


def test_list_metrics_by_hand():
    utility = jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [2, 2, 0]])
    scores = jnp.array([[3.0, 2, 1], [1, 2, 3], [0, 2, 1], [1, 3, 2]])
    found = list_metrics(scores, utility)
    assert float(found["best_of_n"]) == 0.75
    np.testing.assert_allclose(found["pair_accuracy"], (2 + 1 + 2 + 1) / 8)
    np.testing.assert_allclose(found["position_gap"], 1.0)  # no sole best stands third
    assert float(found["first_chosen"]) == 0.25


def test_averaging_removes_a_liking_for_the_first_place():
    responses = jnp.tile(jnp.arange(3)[None, :, None], (400, 1, 1))
    utility = jnp.tile(jnp.array([0.0, 1.0, 0.5]), (400, 1))
    valid = jnp.ones_like(responses, bool)
    prompts = {"prompt": responses[:, 0], "prompt_valid": valid[:, 0]}
    lists = {**prompts, "responses": responses, "valid": valid, "utility": utility}

    def score(liking, prompt, prompt_valid, responses, valid):
        worth = jnp.array([0.0, 1.0, 0.5])[responses[:, :, 0]]
        return worth + jnp.array([liking, 0.0, 0.0]) + 5.0  # of a list, 5 says nothing

    def study(liking):
        return order_metrics(score, liking, lists, KEY, count=16)

    found, fair = study(1.2), study(0.0)
    assert float(found["best_of_n"]) == 0.0
    assert float(found["first_chosen"]) == 1.0
    assert float(found["averaged_best_of_n"]) > 0.9
    np.testing.assert_allclose(found["averaging_gains"], found["averaged_best_of_n"])
    # Another order has another response first in two of three lists.
    assert float(found["order_change"]) == pytest.approx(2 / 3, abs=0.1)
    assert float(fair["order_change"]) == 0.0
    assert float(fair["averaging_gains"]) == 0.0


def test_groups_of_a_policy_are_lists():
    tokens = jnp.arange(24).reshape(4, 6)
    valid = tokens % 5 != 0
    traj = Trajectory(tokens, valid, valid, jnp.zeros((4, 6)))
    prompt, prompt_valid, responses, held = group_columns(traj, 2, 2)
    np.testing.assert_array_equal(prompt, [[0, 1], [12, 13]])
    np.testing.assert_array_equal(prompt_valid, [[False, True], [True, True]])
    np.testing.assert_array_equal(responses[1, 1], [20, 21, 22, 23])
    np.testing.assert_array_equal(held[1, 1], [False, True, True, True])


def test_the_loss_asks_for_the_best():
    columns = dict.fromkeys(("prompt", "responses"), jnp.zeros((8, 4), int))
    columns |= dict.fromkeys(("prompt_valid", "valid"), jnp.ones((8, 4), bool))
    scores = jnp.array([1.0, 0.5, -1.0, 0.0])
    loss = choosing(lambda params, *lists: jnp.tile(scores, (len(lists[0]), 1)))
    found = loss(None, columns | {"best": jnp.where(jnp.arange(8) < 2, 0, 1)})
    total = np.log(np.exp(np.asarray(scores)).sum())
    np.testing.assert_allclose(found.terms["best"].value, total - 0.25 - 0.375, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["accuracy"].value, 0.25)
