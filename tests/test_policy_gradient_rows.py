"""Which rows a policy-gradient step learns from, and which of them stay side by side."""

import dataclasses

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


CONFIG = PolicyGradientConfig(
    prompts=16,
    epochs=2,
    minibatches=2,
    micro_batches=2,
    optimizer=OptimizerConfig("sgd"),
    loop=LoopConfig(1),
)


def program(config=CONFIG, rollout=rollout, **arguments):
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


def test_parts_of_the_prompts_are_sampled_and_cuts_of_the_batch_annotated_in_turn():
    sampled, annotated = [], []

    def counted(params, batch, key):
        sampled.append(batch.shape)
        assert key.shape == ()
        traj = rollout(params, batch, key)
        return traj.with_info(prompt=batch, draw=jax.random.uniform(key, batch.shape))

    def annotate(frozen, traj):
        annotated.append(traj.mask.shape)
        return traj.with_info(twice=2 * traj.info["prompt"])

    config = dataclasses.replace(CONFIG, rollout_cuts=4, batch_cuts=8)
    found = program(config, counted, annotate=annotate)
    found.prompts = lambda key, n: jnp.arange(float(n))
    state = found.start(jax.random.key(0))
    _, traj, _ = jax.jit(found.act)(state, None, None, jax.random.key(1))
    assert set(sampled) == {(4,)}
    assert set(annotated) == {(2, 1)}
    np.testing.assert_array_equal(traj.info["prompt"], np.arange(16.0))
    np.testing.assert_array_equal(traj.info["twice"], 2 * np.arange(16.0))
    assert len(np.unique(traj.info["draw"])) == 16  # every part has a key of its own


def test_parts_must_divide_the_prompts():
    with pytest.raises(ValueError, match="rollout_cuts: expected a divisor of prompts=16, found 3"):
        program(dataclasses.replace(CONFIG, rollout_cuts=3))
