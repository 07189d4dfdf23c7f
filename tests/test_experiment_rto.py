"""RTO: its token rewards by hand, and without them PPO."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences.rto import EXPERIMENT, summary, token_rewards
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

SMOKE = EXPERIMENT.scales["smoke"]


def test_token_rewards_are_scaled_log_ratios_within_the_clip():
    config = dataclasses.replace(SMOKE, token_scale=0.05, token_clip=0.05)
    mask = jnp.array([[False, True, True, True]])
    info = {
        "direct_logprobs": jnp.array([[0.0, -1.0, -4.0, -1.0]]),
        "reference_logprobs": jnp.array([[-9.0, -1.5, -1.0, -3.0]]),
    }
    traj = Trajectory(jnp.zeros((1, 4), int), mask, mask, jnp.zeros((1, 4)), info=info)
    np.testing.assert_allclose(token_rewards(config, traj), [[0, 0.025, -0.05, 0.05]], rtol=1e-6)


def test_gold_is_read_where_the_divergence_met_the_budget():
    config = dataclasses.replace(SMOKE, kl_budget=2.0)
    curve = {"gold": np.array([0.0, 1.0, 5.0]), "kl": np.array([0.0, 1.0, 3.0])}
    found = summary(config, curve)
    assert found == {"gold": 5.0, "kl": 3.0, "mean_gold": 2.0, "gold_at_kl": 3.0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def run(arm, config, shared, folder):
    with Run(folder, 0, arm) as seed:
        metrics = EXPERIMENT.arms[arm].build(config)(seed, shared)
        return metrics, {k: seed.stage("rl").history(k) for k in ("gold", "reward/shaped")}


@pytest.fixture(scope="module")
def ppo(shared, tmp_path_factory):
    return run("ppo", SMOKE, shared, tmp_path_factory.mktemp("ppo"))


def test_without_token_rewards_it_is_ppo(shared, ppo, tmp_path):
    silent = dataclasses.replace(SMOKE, token_scale=0.0)
    metrics, histories = run("rto", silent, shared, tmp_path)
    for name, history in ppo[1].items():
        np.testing.assert_array_equal(histories[name], history)
    # The two programs round otherwise.
    assert metrics == pytest.approx(ppo[0], rel=1e-3)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8


def test_the_token_policy_alone_is_an_arm(shared, tmp_path):
    metrics = EXPERIMENT.arms["dpo"].build(SMOKE)(Run(tmp_path), shared)
    assert metrics == summary(SMOKE, shared[1])
    assert np.isfinite(metrics["gold_at_kl"])
