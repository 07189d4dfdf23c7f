"""Credit from two sources: an outcome and a process reward at each step (PRIME, arXiv:2502.01456).

The process rewards `[batch, time]` are read from `info["process_rewards"]`, where a learner writes
them. Groups are adjacent rows.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.credit.groups import leave_one_out
from rewardjax.credit.returns import discounted_returns
from rewardjax.statistics import masked_mean, to_groups
from rewardjax.trajectory import Trajectory

EPSILON = 1e-6


def scaled_by_largest_return(
    process: Float[Array, "batch time"], traj: Trajectory
) -> Float[Array, "batch time"]:
    """Process rewards divided so that the batch's largest return-to-go has magnitude 1.

    Sums over steps grow with the length of a response; this keeps them beside an outcome in [0, 1]
    (Section 3.3; the authors' code adds 1e-6 to the divisor).
    """
    returns = discounted_returns(process, traj)
    return jnp.where(traj.mask, process, 0.0) / (jnp.max(jnp.abs(returns)) + EPSILON)


def leave_one_out_process(
    process: Float[Array, "batch time"], traj: Trajectory, *, group_size: int
) -> Float[Array, "batch time"]:
    """Returns-to-go of process rewards less a leave-one-out baseline at each step; 0 off the mask.

    With the row means m_j and n rows that acted, the authors' code centres the reward q_it to
    q_it n / (n - 1) - sum_j m_j / (n - 1); the baseline is in units of one step. 0 for a row that
    is alone in its group.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    acted = to_groups(jnp.any(traj.mask, axis=1), group_size)
    means = to_groups(masked_mean(process, traj.mask, axis=1), group_size)
    count = jnp.sum(acted, axis=1, keepdims=True)
    others = jnp.maximum(count - 1, 1)
    baseline = jnp.sum(means, axis=1, keepdims=True) / others

    def rows(x: Array) -> Array:
        return jnp.broadcast_to(x, acted.shape).reshape(-1, 1)

    centred = process * rows(count / others) - rows(baseline)
    return discounted_returns(jnp.where(rows(count > 1), centred, 0.0), traj)


def outcome_and_process(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    group_size: int,
    scale: bool = True,
) -> Float[Array, "batch time"]:
    """PRIME's advantage before whitening: leave-one-out credit of the outcome and of the process.

    Args:
      rewards: the outcome, on each row's last acted step.
      traj: `info["process_rewards"]` are the steps' other rewards.
      group_size: rows to a group.
      scale: divide the process rewards by their largest return-to-go first.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    process = traj.info["process_rewards"]
    if scale:
        process = scaled_by_largest_return(process, traj)
    outcome = leave_one_out(rewards, traj, group_size=group_size)
    return outcome + leave_one_out_process(process, traj, group_size=group_size)
