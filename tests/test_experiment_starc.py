"""STARC: what is drawn, and every arm on a few MDPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.control.starc import (
    EXPERIMENT,
    Config,
    equivalent,
    interpolated,
    log_points,
    random_reward,
)
from rewardjax.envs.mdp import expected_reward, softmax_transitions, without_rewards
from rewardjax.evaluation.reward_distance import epic, starc_distance
from rewardjax.training.run import Run

PLAIN = Config(states=6, actions=2, sparse=0, scaled=0, translated=0, shaped=0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    config = EXPERIMENT.scales["smoke"]
    return EXPERIMENT.prepare(config)(Run(tmp_path_factory.mktemp("prepare")))


def rewards(count=400, **settings):
    config = Config(**{"states": 6, "actions": 2, "sparse": 0, "scaled": 0, **settings})
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: random_reward(config, key))(keys))


def test_random_rewards():
    plain = rewards(translated=0, shaped=0)
    assert abs(plain.mean()) < 0.02
    assert abs(plain.std() - 1) < 0.02
    sparse = rewards(sparse=1, translated=0, shaped=0, sparse_threshold=2.0)
    # A standard normal is above 2 with probability 0.0228.
    assert abs(np.mean(sparse != 0) - 0.0228) < 0.004
    assert sparse[sparse != 0].min() > 2
    scaled = rewards(scaled=1, translated=0, shaped=0) / plain
    np.testing.assert_allclose(scaled.std(axis=(1, 2, 3)), 0, atol=1e-4)
    assert 0 < scaled.min() < 0.2 < 9.8 < scaled.max() < 10.001
    half = np.mean([(x != y).all() for x, y in zip(rewards(translated=0, shaped=0.5), plain)])
    assert 0.4 < half < 0.6


def test_shaping_is_invisible_to_epic():
    mdp = without_rewards(softmax_transitions(jax.random.key(1), 6, 2), PLAIN.discount)
    shaped, plain = rewards(translated=0, shaped=1)[:5], rewards(translated=0, shaped=0)[:5]
    for one, other in zip(shaped, plain):
        canonical = epic(jnp.asarray(one), mdp), epic(jnp.asarray(other), mdp)
        np.testing.assert_allclose(*canonical, atol=1e-4)
    assert np.abs(shaped - plain).max() > 1


def test_interpolations_end_at_the_second_reward():
    pair = jnp.stack([jnp.zeros((6, 2, 6)), jnp.full((6, 2, 6), 8.0)])
    config = Config(interpolations=4)
    means = interpolated(config, pair, lambda first, between: jnp.mean(between - first))
    np.testing.assert_allclose(means, [2, 4, 6, 8])


def test_equivalent_rewards_differ_only_for_those_who_look_beyond_policies():
    mdp = without_rewards(softmax_transitions(jax.random.key(2), 6, 2), PLAIN.discount)
    reward, other = equivalent(PLAIN, jax.random.key(3), mdp)
    assert starc_distance(reward, other, mdp) < 1e-4
    assert starc_distance(reward, other, mdp, canonicalise=epic) > 0.05
    assert expected_reward(mdp.with_reward(other)).shape == (6, 2)


def test_tenths_are_ordered_by_distance(tmp_path):
    distance = np.arange(20)[::-1] / 20
    with Run(tmp_path) as run:
        log_points(run, distance, distance**2)
        np.testing.assert_allclose(run.history("distance"), np.arange(10) / 10 + 0.025)
        squares = [((2 * i / 20) ** 2 + ((2 * i + 1) / 20) ** 2) / 2 for i in range(10)]
        np.testing.assert_allclose(run.history("regret"), squares)


def test_regrets_lie_in_the_range(shared):
    for drawn in shared.values():
        regret = np.asarray(drawn["regret"])
        assert regret.shape == (4, 2, 8)
        assert regret.min() >= 0
        assert 0 < regret.max() <= 1
        np.testing.assert_allclose(drawn["transition"].sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("arm", EXPERIMENT.arms)
def test_arms_run(arm, shared, tmp_path):
    config = EXPERIMENT.scales["smoke"]
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(config)(run, shared)
        assert run.stage("tenths").history("regret").shape == (10,)
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["negative_error"] < 1e-4
    equivalent_rewards_are_apart = metrics["invariance_max"] > 1e-4
    assert equivalent_rewards_are_apart == (arm in ("epic", "epic_w2", "dard", "none"))
    assert (tmp_path / "tenths" / "samples.jsonl").read_text().count("\n") == 10


def test_the_published_size():
    paper = EXPERIMENT.scales["paper"]
    assert (paper.states, paper.actions, paper.discount) == (32, 4, 0.95)
    assert (paper.mdps, paper.pairs, paper.interpolations) == (128, 8, 16)
