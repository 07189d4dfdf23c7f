"""IGPO and SPIRAL: every arm for a few steps, and the bare outcome as an ablation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.agents import igpo, spiral
from rewardjax.credit import group_relative
from rewardjax.credit.turns import turn_relative
from rewardjax.envs.lookup import UNPLAYED
from rewardjax.recipes.agents import with_gain
from rewardjax.training.run import Run


def prepared(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    return experiment.prepare(experiment.scales["smoke"])(Run(folder))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return prepared(igpo.EXPERIMENT, tmp_path_factory)


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    return prepared(spiral.EXPERIMENT, tmp_path_factory)


def check(experiment, arm, folder, shared):
    with Run(folder, 0, arm) as run:
        metrics = experiment.arms[arm].build(experiment.scales["smoke"])(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    for claim in experiment.claims:
        assert claim.metric in metrics
    assert (folder / "rl" / "samples.jsonl").read_text().count("\n") >= 8
    return metrics


@pytest.mark.parametrize("arm", ["grpo_f1", "igpo_joint_norm"])
def test_igpo_arms_run(arm, shared, tmp_path):
    check(igpo.EXPERIMENT, arm, tmp_path, shared)


@pytest.mark.parametrize("arm", ["rae", "fixed_random_opponent"])
def test_spiral_arms_run(arm, player, tmp_path):
    found = check(spiral.EXPERIMENT, arm, tmp_path, player)
    assert found["kuhn_exploitability"] > 0
    assert found["invalid"] > 0  # it has learned nothing yet


def test_gain_is_off_the_last_turn_and_without_it_igpo_is_grpo(shared):
    config = igpo.EXPERIMENT.scales["smoke"]
    policy = igpo.turn_policy(config, config.group_size)
    starts = policy.starts(jax.random.key(0), 4)

    @jax.jit
    def play(params):
        traj = policy.rollout(params, starts, jax.random.key(1))
        return with_gain(policy.policy.model, params, traj, config.world.answer_of)

    traj = play(shared)
    assert traj.info["gain"].shape == traj.info["kinds"].shape
    unplayed = traj.info["kinds"] == UNPLAYED
    assert not jnp.any(jnp.where(unplayed, jnp.abs(traj.info["gain"]) > 1e-6, False))
    # An outcome for every row, as F1 would be with some luck.
    luck = jax.random.bernoulli(jax.random.key(2), 0.5, traj.info["turn_rewards"].shape[:1])
    lucky = traj.with_info(
        turn_rewards=traj.info["turn_rewards"].at[:, 0].set(luck.astype(jnp.float32))
    )
    steps, size = igpo.f1(lucky).steps, config.group_size
    mine = turn_relative(steps, lucky, group_size=size)
    np.testing.assert_allclose(mine, group_relative(steps, lucky, group_size=size), atol=1e-5)
    both = igpo.f1_and_gain(lucky)
    np.testing.assert_allclose(
        both.outcome, igpo.f1(lucky).outcome + igpo.gain(lucky).outcome, atol=1e-6
    )


@pytest.mark.parametrize(("module", "data"), [(igpo, "deepresearcher"), (spiral, "textarena")])
def test_data_that_are_not_generated_are_refused(module, data):
    config = module.EXPERIMENT.scales["paper"]
    with pytest.raises(ValueError, match=f"found '{data}'"):
        module.EXPERIMENT.prepare(config)
