"""Credit by turns: a reward stands at the last step of its turn, and a turn's steps share a return.

`traj.info["turn"]` `[batch, time]` says to which turn a step belongs. Rewards at other steps than
the last one of a turn are not read.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.credit.returns import Scalar, discounted_returns
from rewardjax.statistics import masked_mean, masked_std, to_groups
from rewardjax.trajectory import Trajectory, last_step, turn_ends


def turn_returns(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, discount: Scalar = 1.0
) -> Float[Array, "batch time"]:
    """The discounted sum of the rewards from a step's turn on; 0 off the mask.

    Args:
      rewards: at the last step of each turn.
      traj: the rewarded trajectories.
      discount: in [0, 1], per turn.
    """
    ends = turn_ends(traj)
    returns = discounted_returns(rewards, traj.replace(mask=ends), discount=discount)
    time = ends.shape[1]
    own_end = jax.lax.cummin(jnp.where(ends, jnp.arange(time), time - 1), axis=1, reverse=True)
    return jnp.where(traj.mask, jnp.take_along_axis(returns, own_end, axis=1), 0.0)


def turn_relative(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    group_size: int,
    discount: Scalar = 1.0,
    separate: bool = True,
    ddof: int = 1,
    epsilon: Scalar = 1e-6,
) -> Float[Array, "batch time"]:
    """IGPO's advantage (arXiv:2510.14967): returns of rewards that were z-scored in their group.

    A row's reward on its last turn is its outcome; those before are rewards of turns. The two kinds
    are scaled apart, so that neither drowns the other. Where only outcomes differ this is
    `group_relative`. 0 off the mask.

    Args:
      rewards: at the last step of each turn.
      traj: the rewarded trajectories.
      group_size: adjacent rows to a group.
      discount: in [0, 1], per turn.
      separate: False scales both kinds together.
      ddof: taken off the number of rewards in a standard deviation.
      epsilon: in units of reward.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    ends, outcomes = turn_ends(traj), last_step(traj.mask)
    scaled = jnp.zeros(rewards.shape, jnp.float32)
    for kind in (outcomes, ends & ~outcomes) if separate else (ends,):
        scaled += _group_z_scores(rewards, kind, group_size, ddof, epsilon)
    return turn_returns(scaled, traj, discount=discount)


def _group_z_scores(
    values: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    group_size: int,
    ddof: int,
    epsilon: Scalar,
) -> Float[Array, "batch time"]:
    """Mean 0 and deviation 1 over all masked steps of a group; 0 off them and where all are equal."""
    groups, held = to_groups(values, group_size), to_groups(mask, group_size)
    axes = (1, 2)
    centred = groups - masked_mean(groups, held, axis=axes)[:, None, None]
    spread = masked_std(groups, held, axis=axes, ddof=ddof)[:, None, None]
    high = jnp.max(groups, axis=axes, keepdims=True, where=held, initial=-jnp.inf)
    low = jnp.min(groups, axis=axes, keepdims=True, where=held, initial=jnp.inf)
    # Compared: rounding gives equal rewards a tiny spread, which the division would blow up.
    scores = jnp.where(high > low, centred / (spread + epsilon), 0.0)
    return jnp.where(held, scores, 0.0).reshape(values.shape)
