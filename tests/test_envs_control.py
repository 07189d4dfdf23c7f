"""Control environments: dynamics and rewards by hand, ends of tasks and ends of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.envs.control import MOUNTAIN_CAR, PENDULUM, gymnax_environment, point_mass

KEY = jax.random.key(0)


def test_point_mass_by_hand():
    world = point_mass(dimensions=1, interval=0.5, effort_cost=0.1, max_force=2.0, time_limit=2)
    # At 1 with velocity 3, pushed back with 2: 1 + 1.5 - 0.25 = 2.25, and 3 - 1 = 2.
    state = (jnp.array([[1.0, 3.0]]), jnp.zeros(1, jnp.int32))
    after = world.step(KEY, state, jnp.array([[-5.0]]))
    np.testing.assert_allclose(after.observation, [[2.25, 2.0]])
    np.testing.assert_allclose(after.reward, [-0.5 * (1 + 0.1 * 4)])
    np.testing.assert_allclose(after.factors, [[1.0, 4.0, 3.0]])
    assert (bool(after.terminated[0]), bool(after.truncated[0])) == (False, False)
    last = world.step(KEY, after.state, jnp.array([[0.0]]))
    assert (bool(last.terminated[0]), bool(last.truncated[0])) == (False, True)


def test_point_mass_starts_at_rest_at_distance_1():
    starts = point_mass(dimensions=3).reset(KEY, 50)
    np.testing.assert_allclose(np.linalg.norm(starts.observation[:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(starts.observation[:, 3:], 0)
    assert len(np.unique(starts.observation[:, 0])) == 50


def test_pendulum_factors_make_up_its_reward():
    world = gymnax_environment("Pendulum-v1", factors=PENDULUM)
    assert (world.observation_size, world.action_size, world.discrete) == (3, 1, False)
    assert (world.factors, world.time_limit) == (("angle", "velocity", "torque"), 200)
    starts = world.reset(KEY, 32)
    action = 3 * jax.random.normal(jax.random.key(1), (32, 1))  # some beyond the limit of 2
    after = world.step(KEY, starts.state, action)
    costs = after.factors @ jnp.array([1.0, 0.1, 0.001])
    np.testing.assert_allclose(after.reward, -costs, rtol=1e-4, atol=1e-4)


def test_mountain_car_ends_at_the_goal_and_not_by_time():
    world = gymnax_environment("MountainCarContinuous-v0", factors=MOUNTAIN_CAR)
    starts = world.reset(KEY, 2)
    position = jnp.array([0.44, -0.5])
    state = starts.state.replace(position=position, velocity=jnp.full((2,), 0.05))
    after = world.step(KEY, state, jnp.full((2, 1), 0.5))
    np.testing.assert_array_equal(after.terminated, [True, False])
    np.testing.assert_array_equal(after.truncated, [False, False])
    np.testing.assert_allclose(after.factors, [[1.0, 0.25], [0.0, 0.25]])
    np.testing.assert_allclose(after.reward, [100 - 0.025, -0.025], rtol=1e-5)


def test_a_time_limit_cuts_off_and_does_not_end():
    world = gymnax_environment("CartPole-v1", time_limit=1)
    assert (world.action_size, world.discrete, world.time_limit) == (2, True, 1)
    after = world.step(KEY, world.reset(KEY, 4).state, jnp.array([0, 1, 0, 1]))
    assert not np.any(after.terminated)
    assert np.all(after.truncated)


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match=r"expected one of gymnax's CartPole-v1, .*'CartPole'"):
        gymnax_environment("CartPole")
