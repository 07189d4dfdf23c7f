"""What experiments on control tasks with a goal share: episodes in numbers, evaluation, pictures."""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.envs.control import (
    PENDULUM,
    ControlEnvironment,
    Starts,
    gymnax_environment,
    point_mass,
)
from rewardjax.sampling.control import ControlPolicy, require_finite
from rewardjax.sampling.path_picture import path_picture
from rewardjax.statistics import masked_mean
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory, last_step


def goal_environment(name: str, time_limit: int) -> ControlEnvironment:
    """An environment whose factors are all costs, the first of them the distance from the goal.

    Args:
      name: "point_mass", or gymnax's "Pendulum-v1".
      time_limit: steps an episode.

    Raises:
      ValueError: there are no such factors for an environment of that name.
    """
    makers = {
        "point_mass": lambda: point_mass(time_limit=time_limit, max_force=1.0),
        "Pendulum-v1": lambda: gymnax_environment(name, time_limit=time_limit, factors=PENDULUM),
    }
    if name not in makers:
        raise ValueError(f"environment: expected one of {', '.join(makers)}, found {name!r}")
    return makers[name]()


@dataclasses.dataclass(frozen=True)
class GoalTask:
    """A control policy in a `goal_environment`, and what is measured of it.

    Attributes:
      policy: acts while it learns; it is evaluated at its likeliest actions.
      goal: an episode succeeds if its first factor ends no higher.
      effort: which factor is effort, counted from 0.
      episodes: of an evaluation.
    """

    policy: ControlPolicy
    goal: float
    effort: int
    episodes: int

    @property
    def greedy(self) -> ControlPolicy:
        """The policy as it is evaluated."""
        return dataclasses.replace(self.policy, greedy=True)

    @cached_property
    def play(self):
        """`(params, starts, key) -> Trajectory` of likeliest actions, compiled."""
        return jax.jit(self.greedy.rollout)

    def starts(self, key: PRNGKeyArray) -> Starts:
        """Where the episodes of an evaluation begin."""
        return self.policy.environment.reset(key, self.episodes)

    def summary(self, traj: Trajectory) -> Float[Array, "batch factors"]:
        """Of each episode, all costs: is the goal missed at its end; the other factors' means."""
        factors = traj.info["factors"]
        end = jnp.sum(jnp.where(last_step(traj.mask), factors[..., 0], 0.0), axis=1)
        count = factors.shape[-1]
        means = [masked_mean(factors[..., i], traj.mask, axis=1) for i in range(1, count)]
        return jnp.stack([(end > self.goal).astype(jnp.float32), *means], axis=-1)

    def evaluate(self, params, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        """`success`, the share of episodes that reach the goal, and mean `effort`."""
        found = jnp.mean(self.summary(self.play(params, self.starts(key), key)), axis=0)
        return {"success": 1 - found[0], "effort": found[self.effort]}

    def finish(self, run: Run, params, starts: Starts, step: int) -> Float[Array, "batch factors"]:
        """The summary of episodes from these starts; some are shown in numbers and as paths.

        Raises:
          ValueError: the environment gave a number that is not finite.
        """
        traj = self.play(params, starts, run.key)
        require_finite(self.policy.environment, traj)
        found = self.summary(traj)
        names = ("missed", *self.policy.environment.factors[1:])
        first = np.asarray(traj.observations)[:8, 0].tolist()
        rows = np.asarray(found)[:8].tolist()
        run.samples(
            step,
            [
                {"start": at} | dict(zip(names, row, strict=True))
                for at, row in zip(first, rows, strict=True)
            ],
        )
        points, mask = np.asarray(traj.observations)[:24, :, :2], np.asarray(traj.mask)[:24]
        run.picture("paths", path_picture(points, mask, extent=1.2, radius=self.goal))
        return found
