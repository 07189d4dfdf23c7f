"""Rollouts of control policies; PPO on tasks whose optimum is known."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rewardjax.envs.control import (
    ControlEnvironment,
    Starts,
    Transition,
    gymnax_environment,
    point_mass,
)
from rewardjax.models.actor_critic import Categorical, Gaussian, VectorScorer
from rewardjax.recipes.control import PPOConfig, ppo
from rewardjax.recipes.critic import critic
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.sampling.control import ControlPolicy, require_finite
from rewardjax.sampling.path_picture import path_picture
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run

KEY = jax.random.key(0)
LENGTHS = (1.0, 2.0, 5.0)


def counter(reward=lambda time: time) -> ControlEnvironment:
    """Row i ends by itself after `LENGTHS[i]` steps, or is cut off after 4."""

    def start(key):
        raise NotImplementedError

    def advance(key, state, action):
        time, length = state
        time = time + 1
        seen = jnp.stack([time, length])
        over, cut = time >= length, time >= 4
        return Transition((time, length), seen, reward(time), over, cut, time[None])

    return ControlEnvironment("counter", 2, 1, False, 4, ("time",), start, advance)


def counted(environment):
    length = jnp.array(LENGTHS)
    time = jnp.zeros_like(length)
    starts = Starts((time, length), jnp.stack([time, length], axis=1))
    policy = ControlPolicy(environment, (8,))
    return jax.jit(policy.rollout)(nn.meta.unbox(policy.boxed_init(KEY)), starts, KEY)


@pytest.fixture(scope="module")
def traj():
    return counted(counter())


def test_an_episode_that_has_ended_stays_where_it_is(traj):
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(traj.mask, expected)
    np.testing.assert_array_equal(traj.valid, expected)
    np.testing.assert_array_equal(
        traj.info["environment_reward"], [[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 4]]
    )
    np.testing.assert_array_equal(traj.info["factors"][..., 0], traj.info["environment_reward"])
    np.testing.assert_array_equal(traj.observations[..., 0], [[0, 1, 1, 1], [0, 1, 2, 2], range(4)])
    np.testing.assert_array_equal(traj.logprobs == 0, ~np.array(expected, bool))


def test_what_bootstrapping_reads(traj):
    np.testing.assert_array_equal(traj.info["final_observation"], [[1, 1], [2, 2], [4, 5]])
    np.testing.assert_array_equal(traj.info["terminated"], [True, True, False])


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_sampled_log_probabilities_are_the_scores(name):
    policy = ControlPolicy(gymnax_environment(name, time_limit=30), (16,), log_std=-1.0)
    params = jax.jit(lambda key: nn.meta.unbox(policy.boxed_init(key)))(KEY)
    traj = jax.jit(policy.rollout)(params, policy.environment.reset(KEY, 8), KEY)
    scores = policy.score(params, traj)
    np.testing.assert_allclose(scores.logprobs, traj.logprobs, atol=1e-5)
    assert np.all(np.asarray(scores.entropy)[~np.asarray(traj.mask)] == 0)
    assert traj.actions.shape == ((8, 30) if policy.environment.discrete else (8, 30, 1))
    require_finite(policy.environment, traj)


def test_a_greedy_policy_takes_the_likeliest_action():
    policy = ControlPolicy(point_mass(time_limit=3), (8,), greedy=True)
    params = nn.meta.unbox(policy.boxed_init(KEY))
    traj = policy.rollout(params, policy.environment.reset(KEY, 2), KEY)
    np.testing.assert_allclose(traj.actions, policy.act(params, traj.observations).mean, atol=1e-6)


def test_distributions_by_another_library():
    mean, log_std, action = jnp.array([1.0, -2.0]), jnp.array([0.5, -1.0]), jnp.array([0.3, -1.5])
    normal = stats.norm(np.asarray(mean), np.exp(log_std))
    found = Gaussian(mean, log_std)
    np.testing.assert_allclose(found.logprob(action), normal.logpdf(action).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.entropy, normal.entropy().sum(), rtol=1e-5)
    chances = np.array([0.2, 0.5, 0.3])
    chosen = Categorical(jnp.log(chances) + 7)
    np.testing.assert_allclose(chosen.logprob(jnp.array(2)), math.log(0.3), rtol=1e-5)
    np.testing.assert_allclose(chosen.entropy, stats.entropy(chances), rtol=1e-5)
    assert int(chosen.mode) == 1


def test_a_reward_that_is_no_number_is_named_with_its_environment_and_step():
    world = counter(lambda time: jnp.where(time == 2, jnp.nan, time))
    message = r"counter: expected finite numbers, found reward nan at step 1 of episode 1"
    with pytest.raises(ValueError, match=message):
        require_finite(world, counted(world))


def test_what_comes_after_an_end_is_not_checked():
    world = counter(lambda time: jnp.where(time > 4, jnp.nan, time))
    require_finite(world, counted(world))


def riccati_return(starts, steps, interval, effort_cost):
    """Mean return of the best feedback for the point mass in one dimension, by dynamic programming."""
    a = np.array([[1.0, interval], [0.0, 1.0]])
    b = np.array([[interval**2 / 2], [interval]])
    q, r = interval * np.diag([1.0, 0.0]), interval * effort_cost
    p = np.zeros((2, 2))
    for _ in range(steps):
        gain = b.T @ p @ a / (r + b.T @ p @ b)
        p = q + a.T @ p @ (a - b @ gain)
    return -np.mean(np.einsum("bi,ij,bj->b", starts, p, starts))


def test_ppo_finds_the_optimum_of_a_linear_quadratic_task(tmp_path):
    world = point_mass(dimensions=1, time_limit=24, interval=0.25, effort_cost=0.1)
    rl = PolicyGradientConfig(
        prompts=32,
        epochs=4,
        minibatches=4,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear"),
        loop=LoopConfig(steps=120, steps_per_call=20),
    )
    policy = ControlPolicy(world, (32, 32))
    starts = world.reset(jax.random.key(1), 32)
    with Run(tmp_path, 0) as run:
        params = ppo(PPOConfig(rl), policy).run(run).params
    greedy = dataclasses.replace(policy, greedy=True)
    traj = jax.jit(greedy.rollout)(params, starts, KEY)
    found = float(np.mean(np.sum(traj.info["environment_reward"], axis=1)))
    best = riccati_return(np.asarray(starts.observation), 24, 0.25, 0.1)
    assert 1.03 * best < found <= best + 1e-5


def test_a_critic_bootstraps_where_only_the_time_was_over(traj):
    value = VectorScorer(2, (8,))
    learner = critic(
        value,
        OptimizerConfig(learning_rate=1e-2),
        steps=200,
        values=lambda params, traj: value.score(params, traj.observations),
        bootstrap=lambda params, traj: jnp.where(traj.info["terminated"], 0.0, 5.0),
        discount=0.5,
        lam=1.0,
        clip=None,
        updates=200,
        rows=2,
    )
    state = nn.meta.unbox(learner.init(KEY))
    update = jax.jit(learner.update)
    for _ in range(3):
        state, seen, _ = learner.observe(state, traj, KEY)
        state, _ = update(state, seen, traj.info["environment_reward"], KEY)
    _, seen, _ = learner.observe(state, traj, KEY)
    np.testing.assert_array_equal(seen.info["bootstrap"], [0, 0, 5])
    # discounted sums: 1; 1 + 1, 2; and from the back 4 + 2.5, 3 + 3.25, 2 + 3.125, 1 + 2.5625
    expected = [[1, 0, 0, 0], [2, 2, 0, 0], [3.5625, 5.125, 6.25, 6.5]]
    np.testing.assert_allclose(seen.info["values"], expected, atol=0.4)


def test_a_critic_of_vectors_needs_to_be_told_what_to_value():
    with pytest.raises(TypeError, match="expected a function for a model of VectorScorer"):
        critic(VectorScorer(2), OptimizerConfig(), 1)


def test_paths_are_drawn_from_blue_to_red_within_the_picture():
    points = np.array([[[-0.5, 0.5], [0.5, 0.5], [9.0, 9.0]]])
    image = path_picture(points, np.array([[True, True, False]]), extent=1.0, radius=0.25, size=8)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert image[2, 2, 2] > 150  # where it starts, up and to the left: blue
    assert image[2, 6, 0] > 200  # where it ends: red
    assert np.all(image[4, 4] == 215)  # the goal
    assert np.all(image[0] == 255)  # the third point is off the mask
