"""Preference optimisation in rounds, on a policy that is one number."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.losses import Loss
from rewardjax.recipes.iterated_preference import IteratedPreference, IterationConfig
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run

# Gradient descent on (x - reference - 1)^2 / 2 goes half of the way at each update.
CONFIG = IterationConfig(
    iterations=3,
    prompts=4,
    training=SupervisedConfig(
        2,
        optimizer=OptimizerConfig("sgd", 0.5, b1=0.0, clip=None),
        loop=LoopConfig(steps=2, steps_per_call=1, evaluate_every=1),
    ),
)


def init(key):
    return {"x": nn.LogicallyPartitioned(jnp.zeros(1), (None,))}


def collect(params, frozen, key, prompts):
    return {"seen": jnp.broadcast_to(params["x"], (prompts,))}


def loss(params, batch, frozen):
    target = frozen["reference"]["x"] + frozen["step"]
    values = jnp.broadcast_to((params["x"] - target) ** 2 / 2, batch["seen"].shape)
    return Loss({"distance": Mean.of(values)}, {"seen": Mean.of(batch["seen"])})


def evaluate(params, frozen, key):
    return {"x": params["x"][0], "from_first": params["x"][0] - frozen["first"]["x"][0]}


def run(config, folder):
    program = IteratedPreference(config, init=init, collect=collect, loss=loss, evaluate=evaluate)
    with Run(folder) as run:
        return program.run(run, {"x": jnp.array([10.0])}, {"step": jnp.ones(1)})


@pytest.mark.parametrize(
    ("fixed", "expected"), [(False, [0.75, 1.5, 2.25]), (True, [0.75, 15 / 16, 63 / 64])]
)
def test_the_reference_moves_or_stays(fixed, expected, tmp_path):
    config = IterationConfig(CONFIG.iterations, CONFIG.prompts, CONFIG.training, fixed)
    found = run(config, tmp_path)
    values = [float(p["x"][0]) for p in found.params]
    np.testing.assert_allclose(values, [10, *(10 + x for x in expected)], rtol=1e-6)
    # each iteration reads what the policy at its start wrote
    np.testing.assert_allclose(found.curve("seen")[::2], values[:3], rtol=1e-6)
    assert len(found.curve("eval/x")) == 6
    np.testing.assert_allclose(found.curve("eval/from_first")[-1], expected[-1], rtol=1e-5)


def test_at_once_is_one_iteration_of_the_whole_budget(tmp_path):
    config = CONFIG.at_once
    assert (config.iterations, config.prompts, config.training.loop.steps) == (1, 12, 6)
    found = run(config, tmp_path)
    np.testing.assert_allclose(found.params[-1]["x"], [10 + 63 / 64], rtol=1e-6)
    np.testing.assert_allclose(found.curve("seen"), np.full(6, 10.0))


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    whole = run(CONFIG, tmp_path)
    again = run(CONFIG, tmp_path)  # every iteration's checkpoint is there
    for a, b in zip(whole.params, again.params, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
