"""FK steering: resampling, weights, and the exact posterior of a linear-Gaussian model."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.sampling import particles as fk
from rewardjax.sampling.flow import cps_step, ddim_step
from rewardjax.tasks.mixture import Mixture

LOG_WEIGHTS = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])) + 7.0
PLANE = Mixture(((1.0,),), (1.0,), spread=0.5)
STEPS, TARGET, STRENGTH = 10, 2.0, 3.0


def velocity(x, time, condition):
    return PLANE.velocity(x, time)


def reward(x):
    return -0.5 * (x[:, 0] - TARGET) ** 2


def test_effective_sample_size_by_hand():
    assert math.isclose(float(fk.effective_sample_size(LOG_WEIGHTS)), 1 / 0.3, rel_tol=1e-5)
    assert math.isclose(float(fk.effective_sample_size(jnp.zeros(5))), 5.0, rel_tol=1e-5)
    alone = jnp.array([-1e4, 0.0, -1e4])
    assert math.isclose(float(fk.effective_sample_size(alone)), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize("resample", [fk.multinomial, fk.systematic])
def test_resampling_is_unbiased(resample):
    keys = jax.random.split(jax.random.key(0), 20_000)
    parents = jax.vmap(lambda key: resample(key, LOG_WEIGHTS))(keys)
    share = np.bincount(np.asarray(parents).ravel(), minlength=4) / parents.size
    np.testing.assert_allclose(share, [0.1, 0.2, 0.3, 0.4], atol=0.008)


def test_systematic_children_are_as_many_as_the_weights_say():
    keys = jax.random.split(jax.random.key(0), 200)
    parents = np.asarray(jax.vmap(lambda key: fk.systematic(key, LOG_WEIGHTS))(keys))
    children = np.stack([(parents == i).sum(axis=1) for i in range(4)], axis=1)
    assert np.all(children >= [0, 0, 1, 1])
    assert np.all(children <= [1, 1, 2, 2])
    equal = np.asarray(jax.vmap(lambda key: fk.systematic(key, jnp.zeros(4)))(keys))
    np.testing.assert_array_equal(equal, np.tile(np.arange(4), (200, 1)))


@pytest.mark.parametrize(
    ("potential", "expected", "memory"),
    [
        (fk.difference, [3.0, -1.5], [2.0, -0.5]),
        (fk.maximum, [2.0, 1.0], [2.0, 1.0]),
        (fk.addition, [1.0, 0.5], [1.0, 0.5]),
        (fk.nothing, [0.0, 0.0], [-1.0, 1.0]),
    ],
)
def test_potentials_by_hand(potential, expected, memory):
    found = potential(jnp.array([2.0, -0.5]), jnp.array([-1.0, 1.0]))
    np.testing.assert_allclose(found[0], expected)
    np.testing.assert_allclose(found[1], memory)


def chain_posterior():
    """Mean and variance of the sampler's last point times exp(STRENGTH reward), by NumPy.

    Each step is x' = a x + b + std noise, so that the last point is a Gaussian.
    """
    mean, variance = 0.0, 1.0
    times = np.linspace(1, 0, STEPS + 1)
    for time, after in itertools.pairwise(times):
        ends = []
        for x in (0.0, 1.0):
            at = jnp.array([[x]])
            moved, std = ddim_step(
                at, velocity(at, time, None), jnp.array([time]), jnp.array([after])
            )
            ends.append(float(moved[0, 0]))
        slope = ends[1] - ends[0]
        mean, variance = slope * mean + ends[0], slope**2 * variance + float(std[0]) ** 2
    precision = 1 / variance + STRENGTH
    return (mean / variance + STRENGTH * TARGET) / precision, 1 / precision


@pytest.mark.parametrize("ess_below", [0.5, fk.ALWAYS])
@pytest.mark.parametrize("potential", [fk.difference, fk.maximum, fk.addition, fk.nothing])
def test_weighted_particles_are_the_exact_posterior(potential, ess_below):
    strength = STRENGTH
    steering = fk.Steering(
        potential, strength, particles=4000, start=3, every=3, ess_below=ess_below, worst=-3.0
    )
    found = jax.jit(lambda key: fk.steer(velocity, reward, steering, key, event=(1,), steps=STEPS))(
        jax.random.key(1)
    )
    weights = np.asarray(jax.nn.softmax(found.log_weights), np.float64)
    x = np.asarray(found.x[:, 0], np.float64)
    mean, variance = chain_posterior()
    assert abs(weights @ x - mean) < 0.035
    assert abs(weights @ (x - mean) ** 2 - variance) < 0.025
    np.testing.assert_allclose(found.rewards, reward(found.x), rtol=1e-5, atol=1e-6)


def steered(key, **settings):
    steering = fk.Steering(fk.difference, 1.0, particles=6, worst=-9.0)
    steering = dataclasses.replace(steering, **settings)
    return fk.steer(velocity, reward, steering, key, event=(1,), steps=STEPS, step=cps_step)


def test_without_strength_it_is_the_base_sampler():
    key = jax.random.key(0)
    base = steered(key, potential=fk.nothing, strength=0.0)
    for potential in (fk.difference, fk.addition):
        found = steered(key, potential=potential, strength=0.0)
        np.testing.assert_array_equal(found.x, base.x)
        assert not np.any(found.resampled)
    close = steered(key, strength=1e-6)
    np.testing.assert_array_equal(close.x, base.x)


def test_the_schedule_and_the_last_step():
    found = steered(jax.random.key(0), start=2, every=3, ess_below=fk.ALWAYS)
    np.testing.assert_array_equal(np.flatnonzero(found.resampled), [2, 5, 8, 9])
    assert np.all(np.asarray(found.log_weights) == 0)


def test_weights_accumulate_until_a_resampling():
    found = steered(jax.random.key(0), ess_below=0.0)
    assert not np.any(found.resampled)
    np.testing.assert_allclose(found.log_weights, reward(found.x) + 9.0, rtol=1e-4, atol=1e-4)


def test_a_reward_that_is_not_a_number_counts_as_the_worst():
    def broken(x):
        return jnp.where(x[:, 0] < 1.0, jnp.nan, 0.0)

    steering = fk.Steering(fk.difference, 50.0, 16, ess_below=fk.ALWAYS, worst=-9.0)
    found = jax.jit(lambda key: fk.steer(velocity, broken, steering, key, event=(1,), steps=STEPS))(
        jax.random.key(0)
    )
    assert np.all(np.isfinite(found.x))
    assert np.all(np.asarray(found.x) >= 1.0)
    np.testing.assert_array_equal(found.rewards, np.zeros(16))
