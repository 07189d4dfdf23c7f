"""ArmoRM: probes, gate and debiasing by hand, and arms for a few steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.reward_models.armorm import EXPERIMENT
from rewardjax import rewards
from rewardjax.models.linear_probe import masked_ridge, validated_ridge
from rewardjax.models.routed_scorer import Gate
from rewardjax.recipes.rated_objectives import (
    OBJECTIVES,
    VERBOSE,
    RatingsConfig,
    accuracy,
    chosen_length,
    gold,
    qualities,
)
from rewardjax.statistics import ranks, spearman
from rewardjax.tasks.annotators import rate_some
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

SMOKE = EXPERIMENT.scales["smoke"]


def test_each_objective_is_fitted_on_its_own_rows():
    rng = np.random.default_rng(0)
    h, r, known = rng.normal(size=(12, 3)), rng.normal(size=(12, 2)), rng.random((12, 2)) < 0.6
    targets = np.where(known, r, np.nan)
    found = masked_ridge(*map(jnp.float32, (h, targets)), jnp.asarray(known), 0.7)
    for k in range(2):
        own = h[known[:, k]]
        by_hand = np.linalg.solve(own.T @ own + 0.7 * np.eye(3), own.T @ r[known[:, k], k])
        np.testing.assert_allclose(found[k], by_hand, rtol=1e-4)


def test_held_out_rows_choose_the_penalty_of_each_objective():
    rng = np.random.default_rng(1)
    h = rng.normal(size=(40, 20))
    # The first is exactly linear: no penalty is best. The second is noise: a large one is.
    r = np.stack([h @ np.ones(20), rng.normal(size=40)], axis=1)
    known = np.ones((40, 2), bool)
    penalties = jnp.array([1e-4, 1e4])
    held_out = jnp.arange(40) % 3 == 0
    arrays = jnp.float32(h), jnp.float32(r), jnp.asarray(known)
    weights, chosen = validated_ridge(*arrays, held_out, penalties)
    np.testing.assert_allclose(chosen, [1e-4, 1e4], rtol=1e-5)
    np.testing.assert_allclose(weights[0], np.ones(20), atol=1e-2)
    np.testing.assert_allclose(weights[1], 0.0, atol=1e-2)


def test_rank_correlation_with_ties_is_that_of_scipy():
    a, b = np.array([3.0, 1.0, 2.0, 2.0, 5.0]), np.array([1.0, 1.0, 4.0, 0.0, 4.0])
    assert ranks(jnp.array([3.0, 1.0, 2.0, 2.0])).tolist() == [3.0, 0.0, 1.5, 1.5]
    np.testing.assert_allclose(
        spearman(jnp.array(a), jnp.array(b)), stats.spearmanr(a, b)[0], rtol=1e-5
    )
    assert float(spearman(jnp.ones(4), jnp.arange(4.0))) == 0


def test_no_more_verbosity_is_taken_off_than_is_needed():
    rng = np.random.default_rng(0)
    length, other, third = rng.normal(size=(3, 400))
    ratings = jnp.float32(np.stack([other + 0.4 * length, -length + third, length, third], axis=1))
    taken = np.asarray(rewards.verbosity_penalties(ratings, 2))
    # Falling with verbosity is no bias; the verbosity rating itself goes.
    assert taken[1] == 0
    assert taken[2] == 1
    assert taken[0] == pytest.approx(0.4, abs=0.1)
    debiased = np.asarray(ratings @ rewards.debiasing(jnp.asarray(taken), 2))
    np.testing.assert_allclose(debiased[:, 2], 0.0)
    left = stats.spearmanr(debiased[:, 0], length)[0]
    assert left <= 0.03
    before = ratings[:, 0] - (taken[0] - 0.01) * ratings[:, 2]
    assert stats.spearmanr(before, length)[0] > 0.03
    stubborn = jnp.float32(np.stack([3 * length, length], axis=1))
    np.testing.assert_array_equal(rewards.verbosity_penalties(stubborn, 1), [1.0, 1.0])


def test_nothing_taken_off_leaves_the_ratings():
    np.testing.assert_array_equal(rewards.debiasing(jnp.zeros(3), 1), np.eye(3))


def test_the_gate_by_hand():
    gate = Gate(2, 3, widths=None, temperature=10.0)
    params = {
        "router": {"logits": 10 * jnp.log(jnp.array([1.0, 2.0, 5.0]))},
        "scale": jnp.array(4.0),
    }
    found = gate.coefficients(params, jnp.ones((1, 2)))
    np.testing.assert_allclose(found, [[0.5, 1.0, 2.5]], rtol=1e-5)
    wide = Gate(2, 3, (4,), scale=6.0)
    fresh = nn.meta.unbox(wide.boxed_init(jax.random.key(0)))
    np.testing.assert_allclose(wide.coefficients(fresh, jnp.array([[1.0, -1.0]])), 2, atol=6e-3)


def test_some_objectives_are_rated():
    score = jnp.full((4000, 2), 0.3)
    ratings, rated = rate_some(jax.random.key(0), score, share=0.4, noise=0.05)
    assert float(rated.mean()) == pytest.approx(0.4, abs=0.02)
    seen = np.asarray(ratings)[np.asarray(rated)]
    assert seen.mean() == pytest.approx(0.3, abs=0.005)
    assert seen.std() == pytest.approx(0.05, abs=0.005)
    assert not np.asarray(ratings)[~np.asarray(rated)].any()


def test_qualities_by_hand():
    world = PreferenceWorld()
    good, bad, own = world.first_positive, world.first_negative, world.first_theme_token
    response = [own, own + 1, good, bad, good, world.first_gaudy, world.eos]
    tokens = jnp.array([[world.bos, own, world.sep, *response]])
    mask = jnp.arange(tokens.shape[1])[None] > 2
    info = {"theme": jnp.array([[0]])}
    traj = Trajectory(tokens, mask, mask, jnp.zeros(tokens.shape), info=info)
    np.testing.assert_allclose(
        qualities(world, traj)[0], [1 / 2, 5 / 6, 2 / 6, 5 / 6, 1 / 6, 6], rtol=1e-6
    )


def test_gold_is_the_prompts_own_objective_and_no_length():
    quality = jnp.eye(len(OBJECTIVES))
    worth = gold(RatingsConfig(others=0.2), quality, jnp.full(len(OBJECTIVES), 1))
    np.testing.assert_allclose(worth, [0.2, 1.0, 0.2, 0.2, 0.2, 0.0], rtol=1e-6)
    assert OBJECTIVES[VERBOSE] == "verbose"


def test_what_scores_have_to_do_with_length_by_hand():
    length, gold = jnp.array([[1.0, 2.0, 6.0], [4.0, 5.0, 9.0]]), jnp.array([[0.0, 3.0, 1.0]] * 2)
    samples = {"length": length, "gold": gold}
    longest = chosen_length(samples, np.asarray(length))
    expected = {"length_correlation": 1, "chosen_gold": 1, "chosen_longer": 3}
    assert longest == pytest.approx(expected)
    assert chosen_length(samples, np.asarray(gold))["chosen_gold"] == pytest.approx(3)


def test_accuracy_is_the_mean_over_kinds_of_prompts():
    gold = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    pairs = {"gold": gold, "own": jnp.array([0, 0, 1, 1])}
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(pairs, scores)["accuracy"] == pytest.approx((1 / 2 + 1) / 2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["bt", "gated_debias"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert ("own_objective" in metrics) == (arm == "gated_debias")


def test_uniform_weights_are_the_mean_of_the_ratings(shared, tmp_path):
    with Run(tmp_path, 0, "uniform") as run:
        metrics = EXPERIMENT.arms["uniform"].build(SMOKE)(run, shared)
    pairs = shared["test"]
    score = np.mean(pairs["response"] @ shared["probes"]["weights"].T, axis=-1)
    kinds = []
    for kind in np.unique(pairs["own"]):
        rows = np.asarray(pairs["own"]) == kind
        better = np.sign(pairs["gold"][rows, 0] - pairs["gold"][rows, 1])
        kinds.append(np.mean(better * np.sign(score[rows, 0] - score[rows, 1]) > 0))
    np.testing.assert_allclose(metrics["accuracy"], np.mean(kinds), atol=1e-6)
