"""HERON: its reward model and its measures by hand, and arms for a few steps."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.control.heron import EXPERIMENT, MINI, SIGNS, task_of
from rewardjax.recipes.lexicographic_reward import lexicographic_reward
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

SMOKE = EXPERIMENT.scales["smoke"]
KEY = jax.random.key(0)
POLICY = task_of(MINI).policy


def trajectory(factors, mask=None):
    """Episodes whose observation and action say what the factors are."""
    factors = jnp.asarray(factors, jnp.float32)
    mask = jnp.ones(factors.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
    seen = jnp.concatenate([factors[..., [0, 2]], jnp.zeros((*mask.shape, 2))], axis=-1)
    action = jnp.stack([factors[..., 1], jnp.zeros(mask.shape)], axis=-1)
    return Trajectory(action, mask, mask, jnp.zeros(mask.shape), seen, {"factors": factors})


def test_summary_by_hand():
    factors = [[[1.0, 2.0, 4.0], [0.05, 4.0, 2.0], [9.0, 9.0, 9.0]]] * 2
    found = task_of(MINI).summary(trajectory(factors, [[1, 1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(found, [[0.0, 3.0, 3.0], [1.0, 2.0, 4.0]])


def learn(factors, *, unit=1.0, rounds=60, **settings):
    """The learned reward of each step, and the last metrics."""
    config = dataclasses.replace(MINI.comparison, **settings)
    units = jnp.array([1.0, unit, 1.0])
    learner = lexicographic_reward(
        POLICY, config, 120, factors=lambda t: units * t.info["factors"], signs=SIGNS
    )
    observe, state, traj = jax.jit(learner.observe), nn.meta.unbox(learner.init(KEY)), None
    for i in range(rounds):
        key = jax.random.fold_in(KEY, i)
        state, traj, metrics = observe(state, trajectory(factors), key)
    return np.asarray(traj.info["learned_reward"]), {k: float(m.value) for k, m in metrics.items()}


def test_the_more_important_factor_rules_and_the_next_one_breaks_ties():
    near, far, cheap, dear = 0.0, 1.0, 0.0, 1.0
    kinds = [[near, cheap, 0.0], [near, dear, 0.0], [far, cheap, 0.0], [far, dear, 0.0]]
    reward, metrics = learn(np.tile(np.array(kinds), (64, 1, 1)))
    assert np.all(np.diff(reward[0]) < -0.5)
    assert metrics["accuracy"] == 1.0
    # Two steps are of different distance in half of the pairs, else of different effort in half.
    np.testing.assert_allclose(metrics["level_1"], 0.5, atol=0.1)
    np.testing.assert_allclose(metrics["level_2"], 0.25, atol=0.1)
    assert metrics["level_3"] == 0.0


def test_no_unit_of_effort_matters_and_margins_beyond_reach_leave_the_first_factor_alone():
    factors = np.random.default_rng(0).uniform(size=(16, 16, 3))
    reward, metrics = learn(factors, rounds=3)
    other, _ = learn(factors, rounds=3, unit=128.0)  # a power of 2: no rounding
    np.testing.assert_array_equal(other, reward)
    assert metrics["level_2"] > 0.1
    _, alone = learn(factors, rounds=3, multiples=(0.0, 100.0, 100.0))
    assert (alone["level_1"], alone["level_2"], alone["level_3"]) == (1.0, 0.0, 0.0)


def test_steps_after_an_episodes_end_are_not_compared():
    learner = lexicographic_reward(
        POLICY, MINI.comparison, 120, factors=lambda t: t.info["factors"], signs=SIGNS
    )
    traj = trajectory(np.ones((32, 16, 3)), np.zeros((32, 16)))
    state = nn.meta.unbox(learner.init(KEY))
    (fitted, _), seen, metrics = jax.jit(learner.observe)(state, traj, KEY)
    assert float(metrics["loss"].value) == 0.0
    assert np.all(np.isfinite(seen.info["learned_reward"]))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(fitted.params))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["effort_first", "weighted_sum_x0.01", "sparse_z1"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        assert run.stage("rl").history("eval/success").shape == (2,)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8
    assert (tmp_path / "rl" / "pictures" / "paths.png").stat().st_size > 0


def test_the_published_pendulum_runs(tmp_path):
    paper = EXPERIMENT.scales["paper"]
    rl = dataclasses.replace(SMOKE.ppo.rl, prompts=8)
    config = dataclasses.replace(
        paper,
        time_limit=8,
        widths=(8,),
        comparison=dataclasses.replace(paper.comparison, groups=2),
        evaluation_episodes=8,
        ppo=dataclasses.replace(paper.ppo, rl=rl),
    )
    starts = task_of(config).starts(KEY)
    with Run(tmp_path, 0, "heron_x100") as run:
        shared = (starts, jnp.zeros((8, 3)))
        metrics = EXPERIMENT.arms["heron_x100"].build(config)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())


def test_an_environment_without_factors_is_named():
    config = dataclasses.replace(MINI, environment="CartPole-v1")
    with pytest.raises(ValueError, match=r"expected one of point_mass, .*found 'CartPole-v1'"):
        EXPERIMENT.prepare(config)
