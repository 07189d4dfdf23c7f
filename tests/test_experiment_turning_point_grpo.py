"""TurningPoint-GRPO: rewards and measurements by hand, and arms for a few steps."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generation.turning_point_grpo import EXPERIMENT
from rewardjax.recipes.step_effects import (
    increments,
    sign_agreement,
    step_effects,
    with_stages,
)
from rewardjax.sampling import flow
from rewardjax.tasks.mixture import AskedMode, Mixture
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_the_reward_by_hand():
    # Modes lie at radius 3; the ridge at radius 2 pays 0.2 to everyone; both are 0.4 wide.
    x = jnp.array([[3.0, 0.0], [3.0, 0.4], [-2.0, 0.0], [0.0, 3.0]])
    found = AskedMode().reward(x, jnp.array([0, 0, 0, 0]))
    beyond = 0.2 * math.exp(-0.5 * (1 / 0.4) ** 2)
    np.testing.assert_allclose(found, [1.0, math.exp(-0.5), 0.2, beyond], rtol=1e-4)


def test_sign_agreement_by_hand():
    advantages = jnp.array([[1.0, -1.0, 2.0], [1.0, 1.0, -5.0]])
    effects = jnp.array([[0.5, 0.1, 0.3], [-0.1, 9.0, 9.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    found = sign_agreement(advantages, effects, mask)
    assert float(found["agreement"].value) == 2 / 4
    np.testing.assert_allclose(found["weighted_agreement"].value, 0.8 / 1.0, rtol=1e-6)


def test_effects_sum_to_what_was_gained_and_are_known_for_one_gaussian():
    world = Mixture(((1.0,),), (1.0,), spread=0.5)
    policy = flow.FlowPolicy(
        lambda params, x, time, condition: world.velocity(x, time), (1,), steps=4, window=3
    )
    traj = jax.jit(policy.rollout)(None, jnp.zeros(4, jnp.int32), jax.random.key(0))

    def height(x, condition):
        return x[:, 0]

    effects = jax.jit(
        partial(step_effects, policy, reward=height, continuations=400), static_argnums=0
    )(None, traj, key=jax.random.key(1))
    assert np.all(np.asarray(effects)[:, 3] == 0)
    # Steps are linear and their noise has mean 0: the expectation is that of steps without it.
    ends = []
    for k in range(4):
        x = traj.observations.points[:, k]
        for j in range(k, 4):
            now, after = jnp.full(4, 1 - j / 4), jnp.full(4, 1 - (j + 1) / 4)
            velocity = world.velocity(x, now)
            moved = policy.step(x, velocity, now, after)[0]
            x = moved if j < 3 else x - 0.25 * velocity
        ends.append(x[:, 0])
    expected = np.diff(np.stack(ends, axis=1), axis=1)
    np.testing.assert_allclose(effects[:, :3], expected, atol=0.12)


def test_the_released_step_is_cps():
    paper = EXPERIMENT.scales["paper"]
    policy = paper.sampling.policy(paper.model)
    assert policy.step.func is flow.cps_step
    assert policy.event == (64, 64, 16)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["flow_grpo", "tp_grpo"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        assert run.stage("rl").history("eval/reward").shape == (2,)
    assert all(np.isfinite(x) for x in metrics.values())
    for claim in EXPERIMENT.claims:
        assert claim.metric in metrics
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8
    assert (tmp_path / "rl" / "pictures" / "samples.png").stat().st_size > 0


def test_increments_sum_to_what_the_stochastic_steps_gained(shared):
    policy, reward = SMOKE.sampling.policy(SMOKE.model, group_size=2), AskedMode().reward
    traj = jax.jit(policy.rollout)(shared, jnp.arange(2), jax.random.key(0))
    traj = with_stages(policy, shared, traj, reward)
    final = reward(policy.samples(traj), traj.observations.condition)
    np.testing.assert_array_equal(traj.info["stages"][:, -1], final)
    first = flow.ode_sample(
        partial(policy.velocity, shared),
        traj.observations.points[:, 0],
        traj.observations.condition,
        flow.time_grid(SMOKE.sampling.steps),
    )
    gained = final - reward(first, traj.observations.condition)
    np.testing.assert_allclose(increments(traj).outcome, gained, atol=1e-5)


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match=r"expected 'mixture'.*found 'PickScore prompts"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
