"""Which rows a policy-gradient step learns from, and which of them stay side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import credit, rewards
from rewardjax.losses import Loss
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.trajectory import Trajectory


def rollout(params, batch, key):
    """Rows of one step that know their number."""
    rows = batch.shape[0]
    mask = jnp.ones((rows, 1), bool)
    return Trajectory(mask, mask, mask, jnp.zeros((rows, 1)), info={"row": jnp.arange(rows)})


def apart(params, traj, advantages):
    """0 where the rows 2i and 2i + 1 stand side by side, in this order."""
    pairs = traj.info["row"].reshape(-1, 2)
    wrong = (pairs[:, 1] - pairs[:, 0] != 1) | (pairs[:, 0] % 2 != 0)
    return Loss({"policy": Mean.of(wrong + 0.0 * params)}, {"row": Mean.of(traj.info["row"])})


def program(**arguments):
    config = PolicyGradientConfig(
        prompts=16,
        epochs=2,
        minibatches=2,
        micro_batches=2,
        optimizer=OptimizerConfig("sgd"),
        loop=LoopConfig(1),
    )
    return PolicyGradient(
        config,
        init=lambda key: jnp.zeros(()),
        rollout=rollout,
        prompts=lambda key, n: jnp.zeros(n),
        loss=apart,
        reward=lambda traj: rewards.outcome(jnp.ones(traj.mask.shape[0]), traj.mask),
        credit=credit.discounted_returns,
        measure=lambda traj: {"rows": Mean.of(traj.info["row"])},
        **arguments,
    )


def step(found):
    _, metrics = jax.jit(found.step)(found.start(jax.random.key(0)), None, None, jax.random.key(1))
    return {name: float(mean.value) for name, mean in metrics.items()}


def test_adjacent_rows_stay_adjacent():
    assert step(program())["loss_policy"] > 0
    assert step(program(adjacent=2))["loss_policy"] == 0


def test_a_batch_that_would_part_them_is_refused():
    with pytest.raises(ValueError, match="micro_batches=2 x 8 adjacent rows does not divide"):
        step(program(adjacent=8))


def test_learning_reads_the_selected_rows_and_measuring_all():
    def every_other(traj, key):
        return jax.tree.map(lambda x: x[1::2], traj)

    metrics = step(program(select=every_other))
    np.testing.assert_allclose(metrics["row"], 8.0)
    np.testing.assert_allclose(metrics["rows"], 7.5)
