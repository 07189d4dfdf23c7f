import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences import tdpo
from rewardjax import losses
from rewardjax.evaluation.curves import at_kl
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.preference_data import best_and_worst
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

# One pair: u_w = 2, u_l = -1, D_w = 0.5, D_l = 1.5.
RATIOS = jnp.array([[2.0, -1.0]])
DIVERGENCE = jnp.array([[0.5, 1.5]])


@pytest.mark.parametrize(
    ("margin", "expected", "by_divergence"),
    [
        (tdpo.dpo, 3.0, (0.0, 0.0)),
        (tdpo.tdpo1, 2.0, (1.0, -1.0)),
        (tdpo.tdpo2, 2.5, (0.0, -0.5)),
        (partial(tdpo.tdpo2, alpha=0.3), 2.7, (0.0, -0.3)),
        (partial(tdpo.tdpo2, stop_chosen=False), 2.5, (0.5, -0.5)),
    ],
)
def test_margins_and_where_their_gradient_goes(margin, expected, by_divergence):
    np.testing.assert_allclose(margin(RATIOS, DIVERGENCE), [expected], rtol=1e-6)
    found = jax.grad(lambda d: margin(RATIOS, d)[0])(DIVERGENCE)
    np.testing.assert_allclose(found, [by_divergence], rtol=1e-6)
    by_ratio = jax.grad(lambda u: margin(u, DIVERGENCE)[0])(RATIOS)
    np.testing.assert_allclose(by_ratio, [[1.0, -1.0]])


def test_without_weight_on_the_divergence_tdpo2_is_dpo():
    key = jax.random.key(0)
    ratios, divergence = jax.random.normal(key, (2, 5, 2))
    np.testing.assert_array_equal(
        tdpo.tdpo2(ratios, divergence, alpha=0.0), tdpo.dpo(ratios, divergence)
    )


def test_with_all_weight_and_gradient_tdpo2_is_tdpo1():
    ratios, divergence = jax.random.normal(jax.random.key(1), (2, 5, 2))
    np.testing.assert_allclose(
        tdpo.tdpo2(ratios, divergence, alpha=1.0, stop_chosen=False),
        tdpo.tdpo1(ratios, divergence),
        rtol=1e-5,
    )


MODEL = LanguageModel(
    TransformerConfig(vocab=8, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, mlp_width=16)
)


def pairs_of_different_lengths():
    mask = np.zeros((2, 2, 6), bool)
    mask[..., 2:4] = True
    mask[0, 0, 4:] = True
    valid = mask.copy()
    valid[..., :2] = True
    tokens = np.random.default_rng(0).integers(1, 8, mask.shape) * valid
    return {"tokens": jnp.asarray(tokens), "valid": jnp.asarray(valid), "mask": jnp.asarray(mask)}


def test_divergence_handed_to_the_loss_is_the_sequential_forward_kl():
    batch, seen = pairs_of_different_lengths(), {}

    def keep(ratios, columns):
        seen.update(columns, ratios=ratios)
        return ratios[:, 0]

    policy, reference = (MODEL.init(jax.random.key(seed)) for seed in (0, 1))
    loss = direct_preference(MODEL, keep, divergence=losses.full_kl)(policy, batch, reference)
    tokens, valid, mask = (np.asarray(batch[k]).reshape(4, 6) for k in ("tokens", "valid", "mask"))
    distributions = []
    for params in (policy, reference):
        logits = MODEL.logits(params, jnp.asarray(tokens), jnp.asarray(valid, jnp.int32))
        exp = np.exp(np.asarray(logits, np.float64))
        distributions.append(exp / exp.sum(axis=-1, keepdims=True))
    p, q = distributions
    by_token = np.sum(q * np.log(q / p), axis=-1)
    expected = np.where(mask, by_token, 0.0).sum(axis=1).reshape(2, 2)
    np.testing.assert_allclose(seen["divergence"], expected, rtol=1e-4)
    written = np.take_along_axis(np.log(p / q), tokens[..., None], axis=-1)[..., 0]
    ratios = np.where(mask, written, 0.0).sum(axis=1).reshape(2, 2)
    np.testing.assert_allclose(seen["ratios"], ratios, rtol=1e-4, atol=1e-5)
    metrics = {name: float(mean.value) for name, mean in loss.metrics.items()}
    np.testing.assert_allclose(metrics["rejected_divergence"], expected[:, 1].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["chosen_log_ratio"], ratios[:, 0].mean(), rtol=1e-4)


def test_objective_without_divergence_sees_only_log_ratios():
    batch = pairs_of_different_lengths()
    policy, reference = (MODEL.init(jax.random.key(seed)) for seed in (0, 1))

    def plain(ratios, columns):
        assert "divergence" not in columns
        return losses.bradley_terry(0.1 * (ratios[:, 0] - ratios[:, 1]))

    loss = direct_preference(MODEL, plain)(policy, batch, reference)
    segments = batch["valid"].reshape(4, 6).astype(jnp.int32)
    sums = [
        jnp.sum(
            MODEL.score(params, batch["tokens"].reshape(4, 6), segments)[0].reshape(2, 2, 6)
            * batch["mask"],
            axis=-1,
        )
        for params in (policy, reference)
    ]
    expected = losses.dpo(sums[0][:, 0], sums[0][:, 1], sums[1][:, 0], sums[1][:, 1], beta=0.1)
    np.testing.assert_allclose(loss.terms["preference"].value, jnp.mean(expected), rtol=1e-5)
    assert set(loss.metrics) == {"accuracy", "chosen_log_ratio", "rejected_log_ratio"}


def test_best_and_worst_of_each_group():
    tokens = jnp.arange(12).reshape(6, 2)
    on = jnp.ones_like(tokens, bool)
    traj = Trajectory(tokens, on, on, jnp.zeros((6, 2)), info={"theme": jnp.arange(6)})
    pairs = best_and_worst(traj, jnp.array([0.0, 2.0, 1.0, 5.0, 4.0, 6.0]), 3)
    np.testing.assert_array_equal(pairs["theme"], [[1, 0], [5, 4]])
    np.testing.assert_array_equal(pairs["utility"], [[2.0, 0.0], [6.0, 4.0]])
    np.testing.assert_array_equal(pairs["tokens"][:, 0], tokens[jnp.array([1, 5])])


def test_value_at_a_kl_budget():
    kl, gold = np.array([1.0, 3.0, 2.0, 5.0]), np.array([10.0, 30.0, 0.0, 50.0])
    assert at_kl(kl, gold, 2.0) == 20.0  # on the way to 3, not on the way back
    assert at_kl(kl, gold, 4.0) == pytest.approx(100 / 3)  # between 2 and 5
    assert at_kl(kl, gold, 9.0) == 50.0
    assert at_kl(kl, gold, 0.5) == 10.0
    with pytest.raises(ValueError, match="kl: expected at least one point, all finite"):
        at_kl(np.array([np.nan]), gold[:1], 1.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    config = tdpo.EXPERIMENT.scales["smoke"]
    with Run(tmp_path_factory.mktemp("prepare"), 0, "prepare") as run:
        return tdpo.prepare(config)(run)


def test_pairs_are_told_apart_by_gold(shared):
    pairs, frozen = shared
    for found in (pairs, frozen["held_out"]):
        assert np.all(found["utility"][:, 0] > found["utility"][:, 1])
        gold = tdpo.sentiment(
            tdpo.WORLD,
            Trajectory(
                jnp.asarray(found["tokens"][:, 0]),
                jnp.asarray(found["mask"][:, 0]),
                jnp.asarray(found["valid"][:, 0]),
                jnp.zeros(found["tokens"][:, 0].shape),
                info={"theme": jnp.asarray(found["theme"][:, 0])},
            ),
        )
        np.testing.assert_allclose(gold, found["utility"][:, 0], atol=1e-6)


@pytest.mark.parametrize("arm", tdpo.EXPERIMENT.arms)
def test_every_arm_runs(arm, shared, tmp_path):
    config = tdpo.EXPERIMENT.scales["smoke"]
    with Run(tmp_path, 0, arm) as run:
        metrics = tdpo.EXPERIMENT.arms[arm].build(config)(run, shared)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["kl"] > 0
    assert {claim.metric for claim in tdpo.EXPERIMENT.claims} <= set(metrics)
    assert metrics["d_gap"] == pytest.approx(metrics["d_rejected"] - metrics["d_chosen"], abs=1e-4)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert json.loads(lines[0])["prompt"].startswith("<bos> <")


def test_data_that_cannot_be_generated_are_refused():
    with pytest.raises(ValueError, match=r"data: expected 'preference_world'.*'imdb'"):
        tdpo.prepare(tdpo.EXPERIMENT.scales["paper"])
