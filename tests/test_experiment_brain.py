"""BRAIn: every response enumerated, the noise of gradients, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences import brain
from rewardjax import losses
from rewardjax.losses.posterior import no_baseline, self_normalised
from rewardjax.recipes.enumerated_lab import EnumeratedLab
from rewardjax.sampling.enumerate import every_response
from rewardjax.training.run import Run

SMOKE = brain.EXPERIMENT.scales["smoke"]


def test_every_response_of_two_letters():
    tokens, valid = every_response(vocab=3, longest=2, stop=2)
    found = {tuple(row[kept]) for row, kept in zip(tokens, valid, strict=True)}
    assert found == {(2,), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}
    assert len(tokens) == 7
    assert len(every_response(14, 3, 2)[0]) == 1 + 13 + 14 * 13**2
    with pytest.raises(ValueError, match=r"at most 1,000,000 sequences, found 20\^5"):
        every_response(20, 5, 2)


def test_the_better_of_two_is_dpo_with_beta_one():
    ratios, rewards = jnp.array([[0.4, -0.3], [1.0, 2.0]]), jnp.array([[0.1, 0.9], [3.0, 1.0]])
    expected = losses.bradley_terry(jnp.array([-0.7, -1.0]))
    np.testing.assert_allclose(brain.best_wins(ratios, rewards, 0.5), expected, rtol=1e-6)


def test_a_group_that_is_matched_already_gives_no_gradient():
    rewards = jnp.array([[0.3, -1.0, 2.0]])
    found = jax.grad(lambda x: brain.brain(x, rewards, 0.5)[0])(rewards / 0.5 + 4.0)
    np.testing.assert_allclose(found, np.zeros((1, 3)), atol=1e-6)


def test_a_normalised_baseline_takes_the_noise_away(monkeypatch):
    monkeypatch.setattr(brain, "OFF", 0.0)
    monkeypatch.setattr(brain, "DRAWS", 50)
    key = jax.random.key(0)
    assert float(brain.gradient_noise(key, self_normalised, 1.0, 4)) < 1e-10
    assert float(brain.gradient_noise(key, no_baseline, 1.0, 4)) > 0.1


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return brain.EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_sums_over_all_responses_are_exact(shared):
    frozen, _ = shared
    np.testing.assert_allclose(np.exp(frozen["prior"]).sum(1), np.ones(3), rtol=1e-4)
    np.testing.assert_allclose(np.exp(frozen["posterior"]).sum(1), np.ones(3), rtol=1e-4)
    found = jax.jit(EnumeratedLab(SMOKE.lab).exact)(frozen["reference"], frozen, None)
    np.testing.assert_allclose(found["kl"], 0.0, atol=1e-5)
    gap = np.exp(frozen["posterior"]) * (frozen["posterior"] - frozen["prior"])
    np.testing.assert_allclose(found["kl_posterior"], gap.sum(1).mean(), atol=1e-6)


@pytest.mark.parametrize("arm", ["brain", "dpo"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = brain.EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["kl_posterior"] > 0
    claimed = {
        claim.metric for claim in brain.EXPERIMENT.claims if arm in (claim.arm, claim.baseline)
    }
    assert claimed <= metrics.keys()
    assert ("noise_near" in metrics) == (arm == "brain")
