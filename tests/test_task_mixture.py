"""Mixtures: closed forms against quadrature, derivatives and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rewardjax.tasks.mixture import AskedMode, Mixture, ring, scatter

PAIR = Mixture(((1.0, 0.0), (-1.0, 0.5)), (3.0, 1.0), spread=0.4)
POINTS = jnp.array([[0.3, 0.2], [1.4, -0.5], [-2.0, 1.0]])


def density(x, time, mixture=PAIR):
    """An independent reference."""
    std = np.hypot((1 - time) * mixture.spread, time)
    weights = np.asarray(mixture.weights) / np.sum(mixture.weights)
    parts = [
        w * stats.norm.pdf(x, (1 - time) * np.asarray(m), std).prod(axis=-1)
        for w, m in zip(weights, mixture.means)
    ]
    return np.sum(parts, axis=0)


@pytest.mark.parametrize("time", [0.0, 0.4, 1.0])
def test_density_and_score(time):
    np.testing.assert_allclose(
        np.exp(PAIR.log_density(POINTS, time)), density(np.asarray(POINTS), time), rtol=1e-4
    )
    slope = jax.vmap(jax.grad(lambda x: PAIR.log_density(x[None], time)[0]))(POINTS)
    np.testing.assert_allclose(PAIR.score(POINTS, time), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_velocity_follows_from_the_score(time):
    # E[noise | x_t] = -t score and x_t = (1 - t) E[x_0] + t E[noise].
    noise = -time * np.asarray(PAIR.score(POINTS, time))
    data = (np.asarray(POINTS) - time * noise) / (1 - time)
    np.testing.assert_allclose(PAIR.velocity(POINTS, time), noise - data, rtol=1e-3, atol=1e-4)


def test_velocity_at_the_ends():
    mean = 0.75 * np.array([1.0, 0.0]) + 0.25 * np.array([-1.0, 0.5])
    np.testing.assert_allclose(PAIR.velocity(POINTS, 1.0), np.asarray(POINTS) - mean, rtol=1e-5)
    np.testing.assert_allclose(PAIR.velocity(POINTS, 0.0), -np.asarray(POINTS), atol=1e-5)


def test_samples_have_the_mixtures_moments():
    x, component = PAIR.sample(jax.random.key(0), 20_000)
    assert abs(float(jnp.mean(component == 0)) - 0.75) < 0.015
    np.testing.assert_allclose(jnp.std(x[component == 1], axis=0), [0.4, 0.4], atol=0.02)
    np.testing.assert_allclose(jnp.mean(x[component == 1], axis=0), [-1.0, 0.5], atol=0.02)


def test_the_tilted_mixture_is_the_normalised_product():
    target, strength = (0.5, 1.0), 1.7
    tilted = PAIR.tilted(target, strength)
    grid = np.linspace(-5, 5, 401)
    points = np.stack(np.meshgrid(grid, grid), axis=-1)
    product = density(points, 0.0) * np.exp(-0.5 * strength * np.sum((points - target) ** 2, -1))
    product /= product.sum() * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(density(points, 0.0, tilted), product, atol=1e-4)
    assert tilted.spread < PAIR.spread


def test_strength_zero_changes_nothing():
    same = ring((1.0, 2.0, 3.0)).tilted((1.0, 1.0), 0.0)
    np.testing.assert_allclose(same.centres, ring((1.0, 2.0, 3.0)).centres, atol=1e-6)
    np.testing.assert_allclose(np.exp(same.log_weights), [1 / 6, 2 / 6, 3 / 6], rtol=1e-5)


def test_ring_nearest_and_scatter():
    world = ring((1.0,) * 4, radius=3.0)
    np.testing.assert_allclose(world.centres, [[3, 0], [0, 3], [-3, 0], [0, -3]], atol=1e-6)
    np.testing.assert_array_equal(world.nearest(jnp.array([[0.1, 2.0], [-1.0, 0.2]])), [1, 2])
    picture = scatter(np.array([[1.5, 1.5], [1.5, 1.5], [1.5, 1.5], [1.5, 1.5], [-9.0, 0.0],
                                [-1.5, -1.5]]), extent=2.0, size=4)  # fmt: skip
    expected = np.zeros((4, 4))
    expected[0, 3], expected[3, 0] = 1.0, 0.5
    np.testing.assert_allclose(picture, expected)
    assert np.all(scatter(np.zeros((0, 2))) == 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"means": ((0.0,), (1.0, 2.0)), "weights": (1.0, 1.0)}, "means: expected points"),
        ({"means": ((0.0,),), "weights": (1.0, 1.0)}, "weights: expected 1 positive"),
        ({"means": ((0.0,),), "weights": (1.0,), "spread": 0.0}, "spread: expected a positive"),
    ],
)
def test_bad_mixtures(settings, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**settings)


def test_conditions_say_little_of_the_pretraining_data():
    world = AskedMode(fidelity=0.2)
    x, condition = world.draw(jax.random.key(0), 20_000)
    same = float(jnp.mean(world.mixture.nearest(x) == condition))
    assert abs(same - (0.2 + 0.8 / 8)) < 0.015
