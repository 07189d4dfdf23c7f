"""GPM: what a policy minimises, by hand, and arms for a few steps."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import gpm as study
from experiments.reward_models.gpm import EXPERIMENT
from rewardjax.training.run import Run

SMOKE = dataclasses.replace(
    EXPERIMENT.scales["smoke"],
    model=dataclasses.replace(EXPERIMENT.scales["smoke"].model, layers=1, width=16, mlp_width=16),
)


def test_policy_losses_by_hand():
    scores = jnp.array([[[0.0, 1.0], [-1.0, 0.0]]])
    log_ratio = jnp.array([[0.25, 0.0]])
    config = dataclasses.replace(SMOKE, gpo_beta=2.0, dpo_beta=4.0)
    # Mean scores are 1/2 and -1/2, the log-ratios asked for 1/4 and -1/4.
    np.testing.assert_allclose(study.gpo(config, log_ratio, scores), [[0.0, 0.0625]], atol=1e-7)
    np.testing.assert_allclose(
        study.dpo(config, log_ratio, scores), np.logaddexp(0, -1.0), rtol=1e-6
    )
    tied = study.dpo(config, log_ratio, jnp.zeros_like(scores))
    np.testing.assert_allclose(tied, np.logaddexp(0, [-1.0, 1.0]).mean(), rtol=1e-6)


@pytest.mark.parametrize("arm", ["pairpm", "gpm_gate_apart", "gpm_d2"])
def test_arms_run(arm, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, EXPERIMENT.prepare(SMOKE)(run))
    assert all(np.isfinite(x) for x in metrics.values())
    assert 0 <= metrics["cyclic_accuracy"] <= 1
    assert metrics["passes"] == (12 if arm == "pairpm" else 4)
    if arm == "gpm_d2":
        assert 0 <= metrics["exploitability"] <= 0.5
        assert 0.2 <= metrics["favourite"] <= 1
