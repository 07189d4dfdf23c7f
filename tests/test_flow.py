"""Flow models: networks, losses, samplers and the policy, against closed forms."""

import dataclasses
import math
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rewardjax.losses.flow import flow_matching_loss, interpolate
from rewardjax.models.flow import DiTConfig, FlowModel, MLPConfig
from rewardjax.sampling.flow import (
    FlowPolicy,
    cps_log_density,
    cps_step,
    ddim_step,
    gaussian_log_density,
    ode_sample,
    sde_step,
    time_grid,
)
from rewardjax.tasks.mixture import Mixture

GAUSSIAN = Mixture(((1.0, -2.0),), (1.0,), spread=0.5)


def exact(params, x, time, condition):
    return GAUSSIAN.velocity(x, time)


def policy(**settings):
    settings = {"steps": 10, "window": 9, "log_density": gaussian_log_density} | settings
    return FlowPolicy(exact, (2,), **settings)


@pytest.fixture(scope="module")
def trained():
    """A small network with every weight away from zero."""
    model = FlowModel(MLPConfig(conditions=3, width=8, layers=1))
    params = jax.jit(model.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    leaves = [
        x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(jax.tree.leaves(params), keys)
    ]
    return model, jax.tree.unflatten(jax.tree.structure(params), leaves)


def test_path_and_loss_by_hand():
    data, noise = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -2.0]])
    np.testing.assert_allclose(interpolate(data, noise, jnp.array([0.25])), [[1.5, 1.0]])
    # The velocity is (2, -4); (1, -1) misses it by 1 and 3: (1 + 9) / 2.
    found = flow_matching_loss(jnp.array([[1.0, -1.0]]), data, noise)
    assert float(found.value) == 5.0
    assert float(found.weight) == 2.0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_fall_from_one_to_zero(shift):
    times = np.asarray(time_grid(4, shift=shift))
    even = np.array([1.0, 0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(times, shift * even / (1 + (shift - 1) * even), rtol=1e-6)


def test_sde_step_by_hand():
    x, v = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 4.0]])
    mean, std = sde_step(x, v, jnp.array([0.5]), jnp.array([0.25]), noise=2.0)
    # s^2 = 4 * 0.5 / 0.5 = 4; s^2 / 2t = 4; dt = -1/4: mean = x (1 - 1) + v (1 + 2) (-1/4).
    np.testing.assert_allclose(mean, [[-1.5, -3.0]], atol=1e-6)
    np.testing.assert_allclose(std, [2 * math.sqrt(0.25)], rtol=1e-6)


def test_sde_step_is_finite_at_both_ends():
    x = jnp.ones((2, 2))
    mean, std = sde_step(x, x, jnp.array([1.0, 0.0]), jnp.array([0.9, 0.0]))
    assert np.all(np.isfinite(mean))
    # At t = 1 the denominator is 1 - 0.9.
    np.testing.assert_allclose(std, [0.7 * math.sqrt(1 / 0.1 * 0.1), 0.0], rtol=1e-5)


@pytest.mark.parametrize("step", [partial(cps_step, noise=0.7), ddim_step])
def test_renoising_keeps_the_coefficients_of_the_path(step):
    data, noise = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 5.0]])
    time, after = jnp.array([0.8]), jnp.array([0.6])
    x = interpolate(data, noise, time)
    mean, std = step(x, noise - data, time, after)
    np.testing.assert_allclose(mean[0, 0], 0.4 * 3.0, rtol=1e-5)
    kept = mean[0, 1] / 5.0
    np.testing.assert_allclose(kept**2 + std[0] ** 2, 0.6**2, rtol=1e-5)


def test_cps_noise_and_ddim_noise_by_hand():
    x = jnp.zeros((1, 2))
    _, std = cps_step(x, x, jnp.array([0.8]), jnp.array([0.6]), noise=1 / 3)
    np.testing.assert_allclose(std, [0.3], rtol=1e-5)  # 0.6 sin(30 degrees)
    _, std = ddim_step(x, x, jnp.array([0.8]), jnp.array([0.6]))
    # x_0.6 given x_0 and x_0.8: 1 / (1 / 0.6^2 + (0.2 / 0.4)^2 / (0.8^2 - (0.5 * 0.6)^2)).
    np.testing.assert_allclose(std**2, [1 / (1 / 0.36 + 0.25 / 0.55)], rtol=1e-5)


def test_a_ddim_step_with_the_exact_posterior_mean_is_exact_for_points():
    point = Mixture(((1.0, -2.0),), (1.0,), spread=1e-3)
    x = jnp.array([[0.4, 0.3]])
    velocity = point.velocity(x, jnp.array([0.7]))
    mean, std = ddim_step(x, velocity, jnp.array([0.7]), jnp.array([0.0]))
    np.testing.assert_allclose(mean, [[1.0, -2.0]], atol=1e-4)
    assert float(std[0]) == 0.0


ROWS = 20_000


def moments(x):
    x = np.asarray(x, np.float64)
    return x.mean(axis=0), np.cov(x.T)


def test_ode_and_sde_end_in_the_gaussian_that_the_velocity_is_of():
    steps = 200
    start = jax.random.normal(jax.random.key(0), (ROWS, 2))
    velocity = partial(exact, None)
    condition = jnp.zeros(ROWS, jnp.int32)
    straight = jax.jit(lambda x: ode_sample(velocity, x, condition, time_grid(steps)))(start)
    noisy = policy(steps=steps, window=steps - 1, step=partial(sde_step, noise=0.7))
    drawn = jax.jit(noisy.rollout)(None, condition, jax.random.key(1))
    ancestral = policy(steps=steps, window=steps, step=ddim_step)
    denoised = jax.jit(ancestral.rollout)(None, condition, jax.random.key(2))
    for x in (straight, noisy.samples(drawn), ancestral.samples(denoised)):
        mean, covariance = moments(x)
        np.testing.assert_allclose(mean, [1.0, -2.0], atol=0.02)
        np.testing.assert_allclose(covariance, 0.25 * np.eye(2), atol=0.012)
    # On the way too: at t = 1/2 the marginal is N(mean / 2, 1/4 + 1/16).
    mean, covariance = moments(drawn.actions[:, steps // 2 - 1])
    np.testing.assert_allclose(mean, [0.5, -1.0], atol=0.02)
    np.testing.assert_allclose(covariance, 0.3125 * np.eye(2), atol=0.015)


def test_the_mask_is_on_stochastic_steps_and_nothing_else_is_scored():
    condition = jnp.zeros(3, jnp.int32)
    traj = policy(window=4, group_size=2).rollout(None, condition, jax.random.key(0))
    assert traj.actions.shape == (6, 10, 2)
    np.testing.assert_array_equal(traj.mask, np.tile(np.arange(10) < 4, (6, 1)))
    assert np.all(np.asarray(traj.logprobs)[:, 4:] == 0)
    states = traj.observations
    np.testing.assert_array_equal(states.points[:, 1:], traj.actions[:, :-1])
    np.testing.assert_allclose(states.times[0], np.arange(10, 0, -1) / 10, rtol=1e-6)


def test_a_step_without_noise_is_off_the_mask():
    traj = policy(window=10, step=cps_step).rollout(
        None, jnp.zeros(2, jnp.int32), jax.random.key(0)
    )
    np.testing.assert_array_equal(traj.mask, np.tile(np.arange(10) < 9, (2, 1)))
    assert np.all(np.isfinite(traj.logprobs))


def test_logprobs_are_the_gaussian_density():
    traj = policy().rollout(None, jnp.zeros(2, jnp.int32), jax.random.key(0))
    for k in range(9):
        x, t, after = traj.observations.points[:, k], 1 - k / 10, 1 - (k + 1) / 10
        velocity = np.asarray(GAUSSIAN.velocity(x, t))
        s = 0.7 * math.sqrt(t / (1 - (t if k else after)))
        dt = after - t
        mean = np.asarray(x) * (1 + s**2 / (2 * t) * dt)
        mean = mean + velocity * (1 + s**2 * (1 - t) / (2 * t)) * dt
        expected = stats.norm.logpdf(traj.actions[:, k], mean, s * math.sqrt(-dt)).sum(axis=1)
        np.testing.assert_allclose(traj.logprobs[:, k], expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("settings", [{}, {"step": cps_step, "log_density": cps_log_density}])
def test_scoring_gives_back_the_behaviour_log_probabilities(trained, settings):
    model, params = trained
    actor = FlowPolicy(model.velocity, (2,), steps=5, window=4, group_size=2, **settings)
    traj = jax.jit(actor.rollout)(params, jnp.array([0, 2]), jax.random.key(3))
    score = jax.jit(actor.score)
    scores = score(params, traj)
    np.testing.assert_allclose(scores.logprobs, traj.logprobs, rtol=1e-4, atol=1e-5)
    assert np.any(np.asarray(traj.logprobs) != 0)
    other = jax.tree.map(lambda x: 1.1 * x, params)
    assert np.any(np.abs(score(other, traj).logprobs - traj.logprobs) > 1e-3)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(actor.score(p, traj).logprobs)))(params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))


def test_entropy_is_that_of_a_gaussian():
    traj = jax.jit(policy().rollout)(None, jnp.zeros(1, jnp.int32), jax.random.key(0))
    entropy = jax.jit(policy().score)(None, traj).entropy[0]
    std = 0.7 * math.sqrt(0.5 / 0.5) * math.sqrt(0.1)
    np.testing.assert_allclose(entropy[5], 2 * stats.norm(scale=std).entropy(), rtol=1e-4)
    assert float(entropy[9]) == 0.0


def test_completions_follow_the_ode_from_every_stochastic_state(trained):
    model, params = trained
    actor = FlowPolicy(model.velocity, (2,), steps=5, window=3)
    condition = jnp.array([0, 1])
    traj = jax.jit(actor.rollout)(params, condition, jax.random.key(0))
    found = jax.jit(actor.completions)(params, traj)
    velocity = partial(jax.jit(model.velocity), params)
    assert found.shape == (2, 3, 2)
    for k in range(3):
        expected = ode_sample(
            velocity,
            traj.observations.points[:, k],
            condition,
            time_grid(5)[k:],
        )
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-4, atol=1e-5)
    # From behind the last stochastic step the ODE leads to the sample itself.
    tail = ode_sample(velocity, traj.actions[:, 2], condition, time_grid(5)[3:])
    np.testing.assert_allclose(actor.samples(traj), tail, rtol=1e-4, atol=1e-5)
    assert actor.evaluations(completed=True) == 5 + 5 + 4 + 3
    again = jax.jit(actor.completions)(params, traj, jax.random.key(1))
    assert np.all(np.abs(again - found).max(axis=(1, 2)) > 1e-3)


def test_the_window_must_fit():
    with pytest.raises(ValueError, match=r"window: expected 0 to steps=10, found 11"):
        policy(window=11)


@pytest.mark.parametrize("channels", [0, 3])
def test_the_transformer_starts_at_zero_and_sees_time_condition_and_place(channels):
    config = DiTConfig(4, 6, channels, conditions=2, layers=1, width=8, heads=2, mlp_width=8)
    model = FlowModel(config)
    params = jax.jit(model.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, *config.event))
    same = jnp.broadcast_to(x[:1], x.shape)
    none, half = jnp.zeros(2, jnp.int32), jnp.full(2, 0.5)
    velocity = jax.jit(model.velocity)
    assert np.all(np.asarray(velocity(params, x, half, none)) == 0)
    noise = iter(jax.random.split(jax.random.key(2), 100))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), params)
    velocity = partial(velocity, params)
    assert velocity(x, half, none).shape == x.shape
    for time, condition in [(jnp.array([0.2, 0.9]), none), (half, jnp.array([0, 1]))]:
        first, second = velocity(same, time, condition)
        assert float(jnp.max(jnp.abs(first - second))) > 1e-3
    # Swapping two patches does not merely swap the velocities: patches know their places.
    swapped = jnp.concatenate([x[:, 2:], x[:, :2]], axis=1)
    moved = velocity(swapped, half, none)
    assert float(jnp.max(jnp.abs(moved[:, 2:] - velocity(x, half, none)[:, :2]))) > 1e-3


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_blocks_are_the_unrolled_ones_in_a_stack(remat):
    unrolled = DiTConfig(4, 4, conditions=2, layers=3, width=8, heads=2, mlp_width=8)
    plain = FlowModel(unrolled)
    scanned = FlowModel(dataclasses.replace(unrolled, scan=True, remat=remat))
    params = jax.jit(plain.init)(jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(2), 100))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), params)

    def stacked(params):
        blocks = [params[f"block_{i}"] for i in range(unrolled.layers)]
        rest = {k: v for k, v in params.items() if not k.startswith("block_")}
        return rest | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}

    shapes = jax.tree.map(jnp.shape, stacked(params))
    boxed = jax.eval_shape(scanned.boxed_init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, nn.meta.unbox(boxed)) == shapes
    assert boxed["blocks"]["up"]["kernel"].names == ("layers", "embed", "mlp")
    x = jax.random.normal(jax.random.key(1), (2, *unrolled.event))
    time, condition = jnp.array([0.2, 0.9]), jnp.array([0, 1])

    def squares(model):
        def total(params):
            return jnp.sum(model.velocity(params, x, time, condition) ** 2)

        return jax.jit(jax.value_and_grad(total))

    value, grads = squares(plain)(params)
    assert float(value) > 1e-3
    found = squares(scanned)(stacked(params))
    chex.assert_trees_all_close(found, (value, stacked(grads)), rtol=1e-5, atol=1e-5)


def test_half_precision_and_the_kernel_change_rounding_only():
    whole = DiTConfig(4, 4, conditions=2, layers=2, width=8, heads=2, mlp_width=8, scan=True)
    half = dataclasses.replace(whole, dtype="bfloat16", attention="fused")
    params = jax.jit(FlowModel(whole).init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    x = jax.random.normal(jax.random.key(2), (3, 4, 4))
    time, condition = jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 1, 0])
    fused = dataclasses.replace(whole, attention="fused")
    exact, same, found = (
        jax.jit(FlowModel(config).velocity)(params, x, time, condition)
        for config in (whole, fused, half)
    )
    np.testing.assert_allclose(same, exact, rtol=1e-6)
    assert found.dtype == jnp.float32
    error = jnp.max(jnp.abs(found - exact)) / jnp.max(jnp.abs(exact))
    assert 1e-5 < float(error) < 0.05
    assert {
        x.dtype for x in jax.tree.leaves(jax.eval_shape(FlowModel(half).init, jax.random.key(0)))
    } == {jnp.dtype("float32")}


def test_patches_must_fit():
    with pytest.raises(ValueError, match=r"DiTConfig.height=7 is not a multiple of 2"):
        DiTConfig(height=7)
