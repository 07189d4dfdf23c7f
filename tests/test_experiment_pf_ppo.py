"""PF-PPO: what a filter keeps of a batch, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences.pf_ppo import EXPERIMENT, reliability
from rewardjax.rewards import filters
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_reliability_of_the_extremes_and_of_the_middle():
    """Gold is right about the ends of each group of four and the other way round in the middle."""
    proxy = jnp.array([0.0, 1.0, 2.0, 3.0] * 2)
    gold = jnp.array([0.0, 2.0, 1.0, 3.0] * 2)
    key = jax.random.key(0)
    found = {
        ranks: reliability(key, proxy, gold, 4, ranks)["r_squared"]
        for ranks in (filters.best_and_worst, filters.middle, filters.all_ranks, filters.best)
    }
    # Of all: covariance 4 over variances 5 and 5.
    expected = [1.0, 1.0, (4 / 5) ** 2, 0.0]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize(("arm", "rows"), [("ppo_s", 40), ("bw", 16)])
def test_arms_run(arm, rows, shared, tmp_path):
    run_seed = EXPERIMENT.arms[arm].build(SMOKE)
    with Run(tmp_path, 0, arm) as run:
        metrics = run_seed(run, shared)
        stage = run.stage("rl")
        # What entered the buffer has another mean reward than what was sampled.
        filtered = np.abs(stage.history("reward/shaped") - stage.history("proxy")) > 1e-5
        assert filtered.all() == (rows < 40)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8
