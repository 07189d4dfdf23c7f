"""PAR: its shaping by hand, and every arm for a few steps."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences.par import EXPERIMENT, SHAPINGS, par
from rewardjax.training.run import Run

STATS = {"mean": 0.0, "std": 1.0, "low": -1.0, "high": 3.0}


def test_the_reward_is_the_probability_of_beating_the_references():
    r, refs = jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(par(r, refs, STATS), [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)
    mean = [(0.5 + 1 / (1 + np.exp(-1))) / 2, (1 / (1 + np.exp(-2)) + 0.5) / 2]
    np.testing.assert_allclose(par(r, refs, STATS, m=2), mean, rtol=1e-6)


def test_the_reward_is_bounded_and_centred():
    refs = jnp.zeros((3, 10))
    far = par(jnp.array([-100.0, 0.0, 100.0]), refs, STATS, m=10)
    np.testing.assert_allclose(far, [0, 0.5, 1], atol=1e-6)
    shifted = par(jnp.array([5.0]), jnp.full((1, 1), 4.0), STATS)
    np.testing.assert_allclose(shifted, par(jnp.array([1.0]), jnp.zeros((1, 1)), STATS), rtol=1e-6)


def test_one_reference_that_is_zero_is_the_uncentred_sigmoid():
    r = jnp.linspace(-3, 3, 7)
    uncentred = SHAPINGS["sigmoid_uncentred"](r, None, STATS)
    np.testing.assert_allclose(par(r, jnp.zeros((7, 1)), STATS), uncentred, rtol=1e-6)


def test_slow_growth_first_is_the_reward_moved_by_three():
    r, refs = jnp.array([3.5]), jnp.array([[0.5]])
    np.testing.assert_allclose(SHAPINGS["sgfc"](r, refs, STATS), [0.5], rtol=1e-6)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    config = EXPERIMENT.scales["smoke"]
    return EXPERIMENT.prepare(config)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["vanilla", "par", "lsc", "grpo_par"])
def test_arms_run(arm, shared, tmp_path):
    config = EXPERIMENT.scales["smoke"]
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(config)(run, shared)
        assert run.stage("rl").history("gold").shape == (4,)
    assert all(np.isfinite(x) for x in metrics.values())
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8


def test_every_shaping_is_finite_and_rises_with_the_proxy():
    r, refs = jnp.linspace(-0.9, 0.9, 7), jnp.zeros((7, 10))
    for name, shape in SHAPINGS.items():
        values = np.asarray(partial(shape)(r, refs, STATS))
        assert np.isfinite(values).all(), name
        assert (np.diff(values) > 0).all(), name
