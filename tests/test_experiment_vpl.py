"""VPL: its losses, posterior and questions by hand, the grid, and arms for a few steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.reward_models.vpl import EXPERIMENT
from rewardjax.data.sources import ArraySource
from rewardjax.envs.mdp import (
    optimal_policy,
    soft_optimal_policy,
    state_distribution,
    uniform_policy,
    without_rewards,
)
from rewardjax.losses.distributional import mean_variance_preference
from rewardjax.losses.latent import cyclical_weight, gaussian_kl
from rewardjax.models.latent_scorer import LatentScorer
from rewardjax.recipes.goal_study import ANSWERS, GoalStudy
from rewardjax.recipes.latent_preferences import (
    StepColumns,
    UserReward,
    evidence_bound,
    for_each,
    of_kind,
)
from rewardjax.sampling.queries import gaussian_information
from rewardjax.tasks.goal_preferences import GoalPreferences
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_gaussian_kl_by_hand():
    # 1/2 (4 + 1 - 1) - log 2 in one coordinate, 0 in the other
    found = gaussian_kl(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 1.0])))
    np.testing.assert_allclose(found, 2 - np.log(2), rtol=1e-6)
    same = gaussian_kl(jnp.array([1.0]), jnp.array([0.3]), jnp.array([1.0]), jnp.array([0.3]))
    np.testing.assert_allclose(same, 0.0, atol=1e-7)


def test_the_weight_of_the_kl_starts_again_in_each_cycle():
    weights = [cyclical_weight(step, 8, cycles=2, rise=0.5) for step in range(8)]
    np.testing.assert_allclose(weights, [0, 0.5, 1, 1, 0, 0.5, 1, 1], atol=1e-6)


def test_mean_variance_preference_by_hand():
    mean, std = jnp.array([[2.0, 0.5]]), jnp.array([[3.0, 4.0]])
    found = mean_variance_preference(mean, jnp.log(std))
    np.testing.assert_allclose(found, -stats.norm.logcdf([1.5 / 5]), rtol=1e-5)
    certain = mean_variance_preference(mean, jnp.log(jnp.full((1, 2), 1e-3)))
    np.testing.assert_allclose(certain, 0.0, atol=1e-6)


@pytest.fixture(scope="module", params=[False, True], ids=["single", "pairwise"])
def scorer(request):
    model = LatentScorer(2, latent=3, width=8, pairwise=request.param)
    params = nn.meta.unbox(model.boxed_init(jax.random.key(0)))
    return model, jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), params
    )


def test_the_posterior_sees_a_set(scorer):
    model, params = scorer
    keys = jax.random.split(jax.random.key(1), 2)
    preferred, other = (jax.random.normal(key, (4, 2)) for key in keys)
    seen = jnp.array([True, True, False, False])
    q = model.posterior(params, preferred, other, seen)
    order = jnp.array([1, 3, 0, 2])
    turned = model.posterior(params, preferred[order], other[order], seen[order])
    np.testing.assert_allclose(q.mean, turned.mean, atol=1e-6)
    cut = model.posterior(params, preferred[:2], other[:2], seen[:2])
    np.testing.assert_allclose(q.log_std, cut.log_std, atol=1e-6)
    nobody = model.posterior(params, preferred, other, jnp.zeros(4, bool))
    assert np.isfinite(nobody.mean).all()
    assert not np.allclose(nobody.mean, q.mean)


def test_exchanging_two_items_exchanges_the_preference(scorer):
    model, params = scorer
    a, b, z = jnp.array([0.2, -1.0]), jnp.array([0.7, 0.1]), jnp.array([1.0, -0.5, 2.0])
    forward, backward = model.logit(params, a, b, z), model.logit(params, b, a, z)
    assert abs(float(forward)) > 1e-3
    np.testing.assert_allclose(forward, -backward, rtol=1e-6)


def test_spo_rewards_are_mean_probabilities(scorer):
    model, params = scorer
    items, z = jnp.array([[0.2, -1.0], [0.7, 0.1], [-0.4, 0.3]]), jnp.array([1.0, -0.5, 2.0])
    found = model.score(params, items, z, items)
    by_hand = [
        np.mean([1 / (1 + np.exp(-float(model.logit(params, a, b, z)))) for b in items])
        for a in items
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    np.testing.assert_allclose(found.mean(), 0.5, atol=1e-5)
    if model.pairwise:
        with pytest.raises(ValueError, match="rivals: expected items"):
            model.score(params, items, z)


def test_questions_tell_what_moves_the_posterior():
    mean = jnp.array([[[3.0], [-3.0]], [[0.0], [0.0]]])
    found = gaussian_information(jnp.full((2, 2), 0.5), mean, jnp.zeros((2, 2, 1)))
    np.testing.assert_allclose(found, [0.5 * np.log(10), 0.0], atol=1e-6)
    sure = gaussian_information(jnp.array([1.0, 0.0]), mean[0], jnp.zeros((2, 1)))
    np.testing.assert_allclose(sure, 0.0, atol=1e-6)


def test_columns_of_a_step_resume_with_their_source():
    rows = {"x": np.arange(6)}
    sources = [
        StepColumns(ArraySource(rows, 2, seed=0), lambda step: {"step": np.full(2, step)})
        for _ in range(2)
    ]
    batches = [sources[0].next() for _ in range(4)]
    sources[1].restore({"step": 3})
    again = sources[1].next()
    assert again["step"].tolist() == [3, 3]
    np.testing.assert_array_equal(again["x"], batches[3]["x"])


GRID = GoalPreferences(size=3, goals=((0, 0), (2, 2)), flip_rates=(0.0, 0.0))


def test_utilities_are_steps_to_the_goal():
    np.testing.assert_allclose(
        GRID.utilities[0].reshape(3, 3) * 4, -np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4]]), atol=1e-6
    )
    right, differs = GRID.correct(
        jnp.array([1]), jnp.array([[[8, 0], [2, 6]]]), jnp.array([[1.0, 1.0]])
    )
    assert right.tolist() == [[True, False]]
    assert differs.tolist() == [[True, False]]
    with pytest.raises(ValueError, match="one for each of 4 goals, found 1"):
        GoalPreferences(flip_rates=(0.1,))


def test_users_say_what_they_want_and_err_as_often_as_their_kind():
    world = GoalPreferences(size=9, temperature=0.0)
    users = world.users(jax.random.key(0), 400, 8)
    pairs = jnp.stack([users.preferred, users.other], axis=-1)
    right, differs = world.correct(users.kind, pairs, jnp.ones(pairs.shape[:2]))
    careful = np.asarray(users.kind < 2)[:, None] & np.asarray(differs)
    hasty = np.asarray(users.kind >= 2)[:, None] & np.asarray(differs)
    assert np.asarray(right)[careful].all()
    assert np.asarray(right)[hasty].mean() == pytest.approx(0.8, abs=0.04)


def test_walking_reaches_the_goal_and_a_hot_planner_wanders():
    process = GRID.process(0.9)
    reward = jnp.broadcast_to(jnp.asarray(GRID.utilities[1]), process.transition.shape)
    wanted = process.with_reward(reward)
    cold = soft_optimal_policy(wanted, 1e-3)
    np.testing.assert_allclose(state_distribution(wanted, cold, 4)[8], 1.0, atol=1e-4)
    best = state_distribution(wanted, optimal_policy(wanted), 4)
    np.testing.assert_allclose(best[8], 1.0, atol=1e-6)
    hot = soft_optimal_policy(wanted, 1e4)
    np.testing.assert_allclose(hot, uniform_policy(wanted), atol=1e-3)
    np.testing.assert_allclose(state_distribution(wanted, hot, 0), wanted.initial)


def test_a_soft_planner_by_hand():
    # One state to stay in: what comes after is the same for both actions, and only rewards differ.
    process = without_rewards(jnp.ones((1, 2, 1)), 0.5)
    rewards = 0.2 * jnp.log(jnp.array([1.0, 3.0]))
    policy = soft_optimal_policy(process.with_reward(rewards.reshape(1, 2, 1)), 0.2)
    np.testing.assert_allclose(policy, [[0.25, 0.75]], rtol=1e-5)


STUDY = GoalStudy(world=GRID, users=16, pairs=8, contexts=(1, 2), temperature=0.01, horizon=4)


def exact():
    """Who knows everybody's goal and utilities; z is the goal's place."""

    def infer(params, users, present):
        return STUDY.places[jnp.asarray(GRID.goal_cells)[users["kind"]]]

    def score(params, places, z):
        return -jnp.sum(jnp.abs(places - z), axis=-1) / 4

    def logit(params, first, second, z):
        return score(None, first, z) - score(None, second, z)

    return UserReward(lambda key: {}, lambda *_: None, infer, logit, score)


def test_who_knows_everything_is_right_and_arrives():
    held_out = STUDY.held_out(jax.random.key(0))
    found = STUDY.measure(exact(), {}, held_out, jax.random.key(1))
    assert set(found) >= {"accuracy_1", "accuracy_2", "accuracy", "worst_success"}
    ones = [found[name] for name in ("accuracy", "success", "range_ratio", "correlation")]
    np.testing.assert_allclose(ones, 1.0, atol=1e-3)
    z = exact().infer({}, held_out["users"], None)
    assert float(STUDY.told(z, held_out["users"]["kind"])) == 1.0


def test_plans_for_the_wrong_goal_do_not_arrive():
    kind = jnp.array([0, 1])
    z = STUDY.places[jnp.asarray(GRID.goal_cells)]
    found = STUDY.plans(exact(), {}, kind, jnp.stack([z[0], z[0]]))
    np.testing.assert_allclose([found["success"], found["worst_success"]], [0.5, 0.0], atol=1e-3)
    # Utilities of opposite corners are opposites: correlations are 1 and -1.
    np.testing.assert_allclose(found["correlation"], 0.0, atol=1e-5)


def test_information_of_questions_answer_by_answer():
    scorer, key = LatentScorer(2, latent=1, width=4), jax.random.key(0)
    params = nn.meta.unbox(scorer.boxed_init(jax.random.key(1)))
    params = jax.tree.map(lambda x: jnp.sin(1.0 + jnp.arange(x.size).reshape(x.shape)), params)
    questions = [[0, 8], [2, 6]]
    z = jax.random.normal(key, (STUDY.samples, 1))
    weights, means, log_stds = [], [], []
    for one, two in ANSWERS:
        cells = np.array([questions[0][:: 1 if one else -1], questions[1][:: 1 if two else -1]])
        first, second = STUDY.places[cells[:, 0]], STUDY.places[cells[:, 1]]
        q = scorer.posterior(params, first, second, jnp.ones(2, bool))
        logits = scorer.logit(
            params,
            *(jnp.broadcast_to(x, (STUDY.samples, 2, 2)) for x in (first, second)),
            for_each(z, 2),
        )
        weights.append(np.mean(np.prod(1 / (1 + np.exp(-np.asarray(logits))), axis=1)))
        means.append(float(q.mean[0]))
        log_stds.append(float(q.log_std[0]))
    centre = np.dot(weights, means)
    variance = np.dot(weights, np.exp(2 * np.array(log_stds)) + (means - centre) ** 2)
    by_hand = 0.5 * np.log(variance) - np.dot(weights, log_stds)
    assert by_hand > 0.01
    found = STUDY.information(scorer, params, jnp.array([[questions]]), key)
    np.testing.assert_allclose(found, [[by_hand]], rtol=1e-3)
    nothing = jax.tree.map(jnp.zeros_like, params)
    none = STUDY.information(scorer, nothing, jnp.array([[questions]]), key)
    np.testing.assert_allclose(none, 0.0, atol=1e-6)


def test_without_a_latent_the_bound_is_bradley_terry():
    model, scorer = of_kind(2, 2, 4, told=False), LatentScorer(2, latent=2, width=4)
    params = nn.meta.unbox(model.init(jax.random.key(0)))
    preferred, other = jax.random.normal(jax.random.key(1), (2, 3, 4, 2))
    batch = {"preferred": preferred, "other": other, "kind": jnp.array([0, 1, 0])}
    # A posterior whose read-out is 0 is the prior: z is its noise, here 0.
    blind = params | {"encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}
    zeros = {
        "present": jnp.ones((3, 4), bool),
        "noise": jnp.zeros((3, 2)),
        "kl_weight": jnp.ones(3),
    }
    bound = evidence_bound(scorer)(blind, batch | zeros)
    plain = model.loss(params, batch)
    np.testing.assert_array_equal(bound.terms["preference"].value, plain.terms["preference"].value)
    assert float(bound.terms["kl"].value) == 0.0
    known = of_kind(2, 2, 4, told=True)
    np.testing.assert_array_equal(
        known.infer(params, batch, None), [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["dpl", "vpl_spo"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        assert run.stage("reward").history("loss").shape == (4,)
    assert all(np.isfinite(x) for x in metrics.values())
    assert 0 <= metrics["success"] <= 1
    assert ("z_probe" in metrics) == (arm == "vpl_spo")
