"""A control policy: how it acts in an environment, and how its actions are scored."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.envs.control import ControlEnvironment, Starts
from rewardjax.losses import Scores
from rewardjax.models.actor_critic import CategoricalActor, GaussianActor
from rewardjax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class ControlPolicy:
    """Pure functions of `params` that a policy-gradient recipe needs.

    Attributes:
      environment: where it acts.
      widths: of the hidden layers.
      log_std: logarithm of the deviation with which it starts, where actions are not discrete.
      greedy: act with the likeliest action, to be evaluated; scores are of the distribution still.
    """

    environment: ControlEnvironment
    widths: tuple[int, ...] = (64, 64)
    log_std: float = 0.0
    greedy: bool = False

    @property
    def actor(self) -> GaussianActor | CategoricalActor:
        """The Flax module from observations to distributions over actions."""
        if self.environment.discrete:
            return CategoricalActor(self.environment.action_size, self.widths)
        return GaussianActor(self.environment.action_size, self.widths, self.log_std)

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with logical axis names."""
        return self.actor.init(key, jnp.zeros((1, self.environment.observation_size)))["params"]

    def act(self, params, observation: Float[Array, "*batch observation"]) -> Any:
        """How each state's action is drawn: a `Gaussian` or `Categorical` of `models.actor_critic`."""
        return self.actor.apply({"params": params}, observation)

    def rollout(self, params, starts: Starts, key: PRNGKeyArray) -> Trajectory:
        """One episode from each start, a row each, off the mask once it has ended."""

        def choose(observation, key):
            found = self.act(params, observation)
            action = found.mode if self.greedy else found.sample(key)
            return action, found.logprob(action)

        return play(self.environment, choose, starts, key)

    def score(self, params, traj: Trajectory) -> Scores:
        """Log-probabilities and entropies of a trajectory's actions under `params`."""
        found = self.act(params, traj.observations)
        logprobs = jnp.where(traj.valid, found.logprob(traj.actions), 0.0)
        return Scores(logprobs, jnp.where(traj.valid, found.entropy, 0.0))


def play(environment: ControlEnvironment, choose, starts: Starts, key: PRNGKeyArray) -> Trajectory:
    """One episode from each start.

    `info` gets `environment_reward` `[batch, time]` and `factors` `[batch, time, factors]`, 0 after
    an episode's end; `final_observation` `[batch, observation]`, what its last step led to; and
    `terminated` `[batch]`, on where its end is the task's and not only the time's.

    Args:
      environment: whose `time_limit` is the trajectory's length.
      choose: `(observations [batch, observation], key) -> (actions, their log-probabilities)`.
      starts: of the episodes.
      key: consumed.
    """

    def step(carry, key):
        starts, running, over = carry
        act_key, step_key = jax.random.split(key)
        action, logprob = choose(starts.observation, act_key)
        after = environment.step(step_key, starts.state, action)
        row = {
            "observation": starts.observation,
            "action": action,
            "running": running,
            "logprob": _where(running, logprob, 0.0),
            "reward": _where(running, after.reward, 0.0),
            "factors": _where(running, after.factors, 0.0),
        }
        # An episode that has ended stays where it is.
        moved = jax.tree.map(
            lambda new, old: _where(running, new, old),
            Starts(after.state, after.observation),
            starts,
        )
        over = over | (running & after.terminated)
        return (moved, running & ~after.terminated & ~after.truncated, over), row

    running = jnp.ones(starts.observation.shape[:1], bool)
    keys = jax.random.split(key, environment.time_limit)
    (last, _, over), rows = jax.lax.scan(step, (starts, running, ~running), keys)
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
    return Trajectory(
        actions=rows["action"],
        mask=rows["running"],
        valid=rows["running"],
        logprobs=rows["logprob"],
        observations=rows["observation"],
        info={
            "environment_reward": rows["reward"],
            "factors": rows["factors"],
            "final_observation": last.observation,
            "terminated": over,
        },
    )


def _where(running, new, old):
    return jnp.where(running.reshape(-1, *(1,) * (jnp.ndim(new) - 1)), new, old)


def require_finite(environment: ControlEnvironment, traj: Trajectory) -> None:
    """Check what an environment gave; for the host, on trajectories that leave a jitted program.

    Raises:
      ValueError: a reward, factor or observation is not finite; the message names environment,
        episode and step, counted from 0.
    """
    columns = {"reward": traj.info["environment_reward"], "factors": traj.info["factors"]}
    for name, column in (columns | {"observation": traj.observations}).items():
        values = np.asarray(column).reshape(*traj.mask.shape, math.prod(column.shape[2:]))
        bad = np.argwhere(~np.isfinite(values) & np.asarray(traj.mask)[..., None])
        if bad.size:
            row, step, place = bad[0]
            raise ValueError(
                f"{environment.name}: expected finite numbers, found {name} {values[row, step, place]}"
                f" at step {step} of episode {row}"
            )
