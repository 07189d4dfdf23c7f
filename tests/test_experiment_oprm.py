"""OPRM: its losses beside each other, what is read from ratings, the pairs, arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import oprm as study
from experiments.reward_models.oprm import EXPERIMENT
from rewardjax import losses
from rewardjax.losses.ordinal import UNKNOWN
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]
OUTPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 9)), jnp.float32)


def test_without_levels_region_flooding_is_the_plain_loss():
    unknown = jnp.full((3, 2), UNKNOWN)
    plain = study.oprm(SMOKE, OUTPUTS, unknown)
    np.testing.assert_allclose(study.rgft(SMOKE, OUTPUTS, unknown), plain, rtol=1e-5)
    np.testing.assert_array_equal(study.regression(SMOKE, OUTPUTS, unknown), 0.0)


def test_levels_by_hand():
    p = np.asarray(jnp.exp(OUTPUTS) / jnp.sum(jnp.exp(OUTPUTS), axis=-1, keepdims=True))
    region = jnp.array([[2, 0], [1, 1], [UNKNOWN, UNKNOWN]])
    block = p[0, 0, 6:].sum() * p[0, 1, :3].sum()
    middle = np.outer(p[1, 0, 3:6], p[1, 1, 3:6])
    found = study.rgft(SMOKE, OUTPUTS, region)
    np.testing.assert_allclose(found[:2], -np.log([block, np.tril(middle, -1).sum()]), rtol=1e-5)
    hard = study.rgft(SMOKE, OUTPUTS, region, flooded=False)
    np.testing.assert_allclose(hard, [found[0], -np.log(middle.sum()), found[2]], rtol=1e-5)
    ratings = p @ np.arange(1, 10)
    expected = np.mean((ratings - [[8, 2], [5, 5], [0, 0]]) ** 2, axis=1) * [1, 1, 0]
    np.testing.assert_allclose(study.regression(SMOKE, OUTPUTS, region), expected, rtol=1e-4)


def test_chances_are_those_of_ratings_that_differ():
    chance = jax.nn.sigmoid(study.log_odds(OUTPUTS))
    above, below = (
        jnp.exp(losses.log_probability_higher(OUTPUTS[:, i], OUTPUTS[:, 1 - i])) for i in (0, 1)
    )
    np.testing.assert_allclose(chance, above / (above + below), rtol=1e-5)
    scalar = jnp.array([[[1.0], [0.0]]])
    np.testing.assert_allclose(study.log_odds(scalar), [1.0], rtol=1e-6)
    rating, variance = study.read(SMOKE, scalar)
    np.testing.assert_allclose(rating, [[1 + 8 / (1 + np.exp(-1)), 5.0]], rtol=1e-6)
    np.testing.assert_array_equal(variance, 0.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_pairs_have_uniform_quality_and_noise_by_theme(shared):
    _, train, test = shared
    assert abs(test["utility"].mean() - 0.5) < 0.06
    np.testing.assert_array_equal(
        test["level"], np.minimum(np.floor(test["utility"] * 3), 2).astype(int)
    )
    right = test["utility"][:, 0] >= test["utility"][:, 1]
    ambiguous = test["ambiguous"][:, 0]
    assert right[~ambiguous].mean() > 0.9 > right[ambiguous].mean()
    some, everything = (train[name]["region"] for name in ("some", "all"))
    known = some[:, 0] != UNKNOWN
    assert 0.08 < known.mean() < 0.3
    assert (some[known, 0] >= some[known, 1]).all()
    assert (everything[:, 0] >= everything[:, 1]).all()
    assert everything.min() == 0
    assert len(everything) < len(some)


def test_a_perfect_rating_measures_as_one(shared):
    _, _, test = shared
    quality = 1 + 8 * test["utility"]
    sharp = -((np.arange(1, 10) - quality[..., None]) ** 2) / 0.5
    found = study.measured(SMOKE, jnp.asarray(sharp, jnp.float32), test)
    assert found["accuracy"] > 0.99
    assert found["mae"] < 0.02
    assert found["spearman"] > 0.99
    assert found["level_accuracy"] > 0.85


@pytest.mark.parametrize("arm", ["bt", "rgft"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert ("ambiguity_auc" in metrics) == (arm == "rgft")
