"""TGDPO: token weights by hand, their reduction to DPO, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences import tgdpo
from rewardjax import losses
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.token_guidance import coefficients, token_logprobs, true_scores
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.run import Run

SMOKE = tgdpo.EXPERIMENT.scales["smoke"]
MODEL = LanguageModel(
    TransformerConfig(vocab=8, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, mlp_width=16)
)


def test_coefficients_lean_to_the_good_tokens_of_the_chosen_and_the_bad_of_the_rejected():
    rewards = jnp.array([[[0.4, -0.6, 9.0], [0.4, -0.6, 9.0]]])
    found = coefficients(rewards, 0.5)
    np.testing.assert_allclose(found, [[[1.2, 0.7, 1.95], [0.8, 1.3, 0.05]]], rtol=1e-5)
    np.testing.assert_array_equal(coefficients(rewards, 0.0), np.ones((1, 2, 3)))


def pairs_of_tokens():
    mask = np.zeros((2, 2, 5), bool)
    mask[..., 2:4] = True
    mask[0, 0, 4] = True
    valid = mask.copy()
    valid[..., :2] = True
    tokens = np.random.default_rng(0).integers(1, 8, mask.shape) * valid
    return {"tokens": jnp.asarray(tokens), "valid": jnp.asarray(valid), "mask": jnp.asarray(mask)}


def test_weights_multiply_each_tokens_log_ratio_and_ones_leave_dpo():
    batch, seen = pairs_of_tokens(), {}

    def keep(ratios, batch):
        seen["ratios"] = ratios
        return losses.bradley_terry(ratios[:, 0] - ratios[:, 1])

    objective = direct_preference(MODEL, keep)
    policy, reference = (MODEL.init(jax.random.key(seed)) for seed in (0, 1))
    after, before = (
        np.asarray(token_logprobs(MODEL, params, batch)) for params in (policy, reference)
    )
    weight = np.random.default_rng(1).uniform(0.1, 2.0, batch["mask"].shape).astype(np.float32)
    found = objective(policy, batch | {"token_weight": jnp.asarray(weight)}, reference)
    expected = np.sum(weight * (after - before) * batch["mask"], axis=-1)
    np.testing.assert_allclose(seen["ratios"], expected, rtol=1e-4, atol=1e-5)
    plain = objective(policy, batch, reference)
    for name, mean in plain.metrics.items():  # what is logged has no weights
        np.testing.assert_allclose(found.metrics[name].value, mean.value, rtol=1e-6)
    same = objective(policy, batch | {"token_weight": jnp.ones_like(weight)}, reference)
    assert float(same.terms["preference"].value) == float(plain.terms["preference"].value)


def test_true_scores_are_what_each_token_adds_to_gold():
    world = PreferenceWorld(gaudy_effect=-0.15, repetition_penalty=2.0)
    own, gaudy = world.first_theme_token, world.first_gaudy
    row = [world.bos, own, world.sep, own, own + 1, own, gaudy, gaudy, world.eos]
    tokens = jnp.array([[row, [*row[:3], world.eos, *[world.pad] * 5]]])
    mask = (jnp.arange(9) >= 3) & (tokens != world.pad)
    theme = jnp.zeros((1, 2, 1), jnp.int32)
    found = true_scores(world, {"tokens": tokens, "mask": mask, "theme": theme})
    first = [0, 0, 0, 0.25, 0.25, -2 / 12, -0.15, -0.15 - 2 / 12, 0]
    np.testing.assert_allclose(found, np.array([[first, np.zeros(9)]]), atol=1e-6)


def test_shuffling_stays_within_a_responses_own_tokens():
    batch = pairs_of_tokens()
    rewards = jnp.where(batch["mask"], jnp.arange(20.0).reshape(2, 2, 5) + 1, 0.0)
    found = tgdpo.shuffled(batch | {"guided": rewards}, jax.random.key(0))
    np.testing.assert_array_equal(found > 0, batch["mask"])
    np.testing.assert_array_equal(jnp.sort(found, axis=-1), jnp.sort(rewards, axis=-1))
    assert np.any(found != rewards)


def test_simpo_compares_mean_log_probabilities():
    batch = pairs_of_tokens()
    params = MODEL.init(jax.random.key(0))
    uniform = jax.tree.map(jnp.zeros_like, params)
    count = jnp.sum(batch["mask"], axis=-1, keepdims=True)
    weight = jnp.broadcast_to(1.0 / count, batch["mask"].shape)

    def difference(ratios, batch):
        return ratios[:, 0] - ratios[:, 1]

    found = direct_preference(MODEL, difference)(params, batch | {"token_weight": weight}, uniform)
    logprobs = token_logprobs(MODEL, params, batch) * batch["mask"]
    means = jnp.sum(logprobs, axis=-1) / count[..., 0]
    expected = jnp.mean(means[:, 0] - means[:, 1])
    np.testing.assert_allclose(found.terms["preference"].value, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tgdpo.EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["tgdpo", "simpo"])
def test_arms_run_and_start_from_the_sft_policy(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = tgdpo.EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        ratio = run.stage("policy").history("chosen_log_ratio")
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in tgdpo.EXPERIMENT.claims} <= metrics.keys()
    assert abs(ratio[-1]) > 1e-5
    if arm == "tgdpo":
        np.testing.assert_allclose(ratio[0], 0.0, atol=1e-5)


def test_data_that_cannot_be_generated_are_refused():
    with pytest.raises(ValueError, match=r"data: expected 'world'.*'princeton-nlp"):
        tgdpo.prepare(tgdpo.EXPERIMENT.scales["paper"])
