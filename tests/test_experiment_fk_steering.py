"""FK steering: its worlds and measurements, and arms for a few steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generation.fk_steering import EXPERIMENT
from rewardjax.evaluation.transport import wasserstein2
from rewardjax.models.flow import DiTConfig
from rewardjax.recipes.flow_worlds import RareDigit, RareMode
from rewardjax.training.loop import smoke
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_wasserstein_distance_by_hand():
    first = np.array([[0.0, 0.0], [4.0, 0.0]])
    second = np.array([[4.0, 3.0], [0.0, 1.0]])
    # Matched crosswise: squares 1 and 9.
    assert np.isclose(wasserstein2(first, second), np.sqrt(5.0))
    assert wasserstein2(first, first[::-1]) == 0.0
    with pytest.raises(ValueError, match=r"found \(2, 2\) and \(1, 2\)"):
        wasserstein2(first, second[:1])


def test_the_rare_mode_is_on_the_right():
    world = RareMode()
    x = jnp.array([[3.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(world.reward(x), [0.0, -2.0, -9.0], atol=1e-5)
    np.testing.assert_array_equal(world.wanted(x), [True, True, False])
    target = world.target(jax.random.key(0), 2000, 2.0)
    # exp(reward * 2): the rare mode's spread shrinks from 0.3 to (1 / 0.09 + 2) ** -0.5.
    rare = target[np.asarray(world.wanted(target))]
    np.testing.assert_allclose(np.std(rare, axis=0), (1 / 0.09 + 2) ** -0.5, rtol=0.08)
    assert len(rare) / 2000 > 0.5


@pytest.mark.parametrize("arm", ["base", "is", "fk_diff"])
def test_arms_run(arm, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, EXPERIMENT.prepare(SMOKE)(run))
        np.testing.assert_array_equal(run.stage("particles").history("reward").shape, (3,))
    assert all(np.isfinite(x) for x in metrics.values())
    for claim in EXPERIMENT.claims:
        assert claim.metric in metrics
    assert len(list((tmp_path / "particles" / "pictures").iterdir())) == 3


def test_digits_run_through_the_transformer(tmp_path):
    pytest.importorskip("sklearn")
    model = DiTConfig(patch=4, layers=1, width=8, heads=2, mlp_width=8)
    world = smoke(RareDigit(model=model))
    config = dataclasses.replace(SMOKE, world=world)
    with Run(tmp_path, 0, "fk_diff") as run:
        shared = EXPERIMENT.prepare(config)(run)
        assert run.stage("pretrain").history("loss").shape == (4,)
        metrics = EXPERIMENT.arms["fk_diff"].build(config)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    only = world.target(jax.random.key(0), 50, 1.0)
    assert np.mean(world.wanted(only)) == 1.0
    assert np.mean(world.reward(only) > np.log(0.5)) > 0.9


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match=r"expected 'generated'.*found 'GenEval prompts"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
