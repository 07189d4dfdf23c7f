"""Control environments as pure functions: gymnax's classic tasks, and a point mass.

gymnax (extra `control`) gives the classic tasks: its environments are jitted JAX functions with the
physics of Gym, and since version 1.0 they tell a task's end from the end of its time. Its automatic
reset is left out: an episode is a row of a trajectory. It has no task whose optimum is known in
closed form, so the point mass, whose costs are quadratic, is written here in the same interface.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped


class Starts(NamedTuple):
    """Where episodes begin; leaves have a leading batch axis."""

    state: Any
    observation: Float[Array, "batch observation"]


class Transition(NamedTuple):
    """What a step leads to; each with a leading batch axis, except inside `advance`.

    Attributes:
      state: the next one.
      observation: of that state.
      reward: the environment's own.
      terminated: the task is over: nothing will be earned after this step.
      truncated: the time is over, though the task may not be.
      factors: what the step is judged by, in the order of the environment's `factors`.
    """

    state: Any
    observation: Float[Array, "*batch observation"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    factors: Float[Array, "*batch factors"]


@dataclasses.dataclass(frozen=True)
class ControlEnvironment:
    """An environment whose observations are vectors.

    Attributes:
      name: for messages.
      observation_size: numbers in an observation.
      action_size: numbers in an action, or the actions to choose from where they are `discrete`.
      discrete: actions are integers below `action_size`.
      time_limit: steps after which an episode is cut off.
      factors: names of what a step is judged by; the environment's reward is not among them.
      start: `(key) -> (state, observation)` of one episode.
      advance: `(key, state, action) -> Transition` of one episode.
    """

    name: str
    observation_size: int
    action_size: int
    discrete: bool
    time_limit: int
    factors: tuple[str, ...]
    start: Callable[[PRNGKeyArray], tuple[Any, Array]]
    advance: Callable[[PRNGKeyArray, Any, Array], Transition]

    def reset(self, key: PRNGKeyArray, n: int) -> Starts:
        """The beginnings of `n` episodes."""
        return Starts(*jax.vmap(self.start)(jax.random.split(key, n)))

    def step(self, key: PRNGKeyArray, state: Any, action: Shaped[Array, "batch ..."]) -> Transition:
        """One step of each episode."""
        keys = jax.random.split(key, action.shape[0])
        return jax.vmap(self.advance)(keys, state, action)


# What a step is judged by: (observation before it, action, terminated by it) -> number.
Factor = Callable[[Array, Array, Array], Array]

PENDULUM: Mapping[str, Factor] = {
    "angle": lambda seen, action, over: jnp.arctan2(seen[1], seen[0]) ** 2,
    "velocity": lambda seen, action, over: seen[2] ** 2,
    "torque": lambda seen, action, over: jnp.sum(jnp.clip(action, -2.0, 2.0) ** 2),
}
"""Costs of gymnax's Pendulum-v1: squares of the angle from upright (rad), of velocity and torque."""

MOUNTAIN_CAR: Mapping[str, Factor] = {
    "goal": lambda seen, action, over: over.astype(jnp.float32),
    "effort": lambda seen, action, over: jnp.sum(action**2),
}
"""Factors of gymnax's MountainCarContinuous-v0: the goal is reached; the action's square, a cost."""


def gymnax_environment(
    name: str, *, time_limit: int | None = None, factors: Mapping[str, Factor] | None = None
) -> ControlEnvironment:
    """One of gymnax's environments, observations flattened.

    Args:
      name: gymnax's, such as "Pendulum-v1".
      time_limit: steps an episode; gymnax's own without it.
      factors: what steps are judged by (`PENDULUM`, `MOUNTAIN_CAR`); none without it.

    Raises:
      ImportError: gymnax is not installed.
      ValueError: gymnax has no environment of that name.
    """
    try:
        import gymnax
    except ImportError as error:
        raise ImportError(f"{name} needs gymnax: pip install 'rewardjax[control]'") from error
    if name not in gymnax.registered_envs:
        known = ", ".join(gymnax.registered_envs)
        raise ValueError(f"name: expected one of gymnax's {known}; found {name!r}")
    world, params = gymnax.make(name)
    if time_limit is not None:
        params = params.replace(max_steps_in_episode=time_limit)
    judges = factors or {}

    def start(key):
        observation, state = world.reset_env(key, params)
        return state, jnp.ravel(observation).astype(jnp.float32)

    def advance(key, state, action):
        before = jnp.ravel(world.get_obs(state, params, key)).astype(jnp.float32)
        observation, state, reward, over, _ = world.step_env(key, state, action, params)
        cut = world.is_truncated(state, params)
        observation = jnp.ravel(observation).astype(jnp.float32)
        found = judged(judges, before, action, over)
        reward = jnp.asarray(reward, jnp.float32)
        return Transition(state, observation, reward, jnp.asarray(over), cut, found)

    space = world.action_space(params)
    return ControlEnvironment(
        name=name,
        observation_size=math.prod(world.observation_space(params).shape),
        action_size=space.n if hasattr(space, "n") else math.prod(space.shape),
        discrete=hasattr(space, "n"),
        time_limit=params.max_steps_in_episode,
        factors=tuple(judges),
        start=start,
        advance=advance,
    )


def point_mass(
    *,
    dimensions: int = 2,
    time_limit: int = 32,
    interval: float = 0.2,
    max_force: float = math.inf,
    effort_cost: float = 0.1,
) -> ControlEnvironment:
    """A unit mass without friction that a force moves to the origin: a linear-quadratic task.

    Observed are position and velocity. An episode begins at rest at distance 1 from the origin, in
    any direction, and is cut off at the time limit. A force u, held for h = `interval` seconds,
    leads to `x + h v + h^2 u / 2` and `v + h u`. The reward of a step, of what is seen and done in
    it, is `-h (|x|^2 + effort_cost |u|^2)`.

    Factors, all costs: `distance` |x|, `effort` |u|^2, `speed` |v|.

    Args:
      dimensions: of position, velocity and force.
      time_limit: steps an episode.
      interval: seconds a step.
      max_force: along each axis; beyond it a force is cut. The task is linear without it.
      effort_cost: of a unit of squared force, in [0, inf).
    """

    def start(key):
        direction = jax.random.normal(key, (dimensions,))
        position = direction / jnp.linalg.norm(direction)
        observation = jnp.concatenate([position, jnp.zeros_like(position)])
        return (observation, jnp.zeros((), jnp.int32)), observation

    def advance(key, state, action):
        observation, time = state
        position, velocity = jnp.split(observation, 2)
        force = jnp.clip(action, -max_force, max_force)
        effort = jnp.sum(force**2)
        reward = -interval * (jnp.sum(position**2) + effort_cost * effort)
        factors = jnp.stack([jnp.linalg.norm(position), effort, jnp.linalg.norm(velocity)])
        position = position + interval * velocity + interval**2 / 2 * force
        observation = jnp.concatenate([position, velocity + interval * force])
        cut = time + 1 >= time_limit
        over = jnp.zeros((), bool)
        return Transition((observation, time + 1), observation, reward, over, cut, factors)

    return ControlEnvironment(
        name=f"point_mass_{dimensions}d",
        observation_size=2 * dimensions,
        action_size=dimensions,
        discrete=False,
        time_limit=time_limit,
        factors=("distance", "effort", "speed"),
        start=start,
        advance=advance,
    )


def judged(
    factors: Mapping[str, Factor],
    observation: Float[Array, "observation"],
    action: Shaped[Array, "..."],
    terminated: Bool[Array, ""],
) -> Float[Array, "factors"]:
    """The factors' values, in order."""
    found = [judge(observation, action, terminated) for judge in factors.values()]
    return jnp.stack(found) if found else jnp.zeros((0,))
