"""Credit by comparison: a row against the other samples of its prompt.

A row's outcome is the sum of its rewards over acted steps, and every acted step of the row gets the
row's advantage. Groups are adjacent rows. A row with nothing acted counts in no statistic and gets
0; so does every row of a group whose outcomes are all equal, exactly.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import masked_mean, masked_std, to_groups
from rewardjax.trajectory import Trajectory


def group_relative(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    group_size: int,
    normalise: bool = True,
    ddof: int = 1,
    epsilon: float | Float[Array, ""] = 1e-6,
) -> Float[Array, "batch time"]:
    """GRPO's advantage (arXiv:2402.03300, Sec. 4.1.2); 0 off the mask.

    Args:
      rewards: the reward of each step.
      traj: the rewarded trajectories.
      group_size: rows to a group.
      normalise: divide by the group's standard deviation plus `epsilon`; False is Dr. GRPO
        (arXiv:2503.20783).
      ddof: taken off the number of rows in the standard deviation.
      epsilon: in units of reward.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    outcomes, counted = _outcomes(rewards, traj, group_size)
    advantages = outcomes - masked_mean(outcomes, counted, axis=1)[:, None]
    if normalise:
        spread = masked_std(outcomes, counted, axis=1, ddof=ddof)[:, None]
        advantages = advantages / jnp.where(spread > 0, spread + epsilon, 1.0)
    return _to_steps(jnp.where(_differ(outcomes, counted), advantages, 0.0), traj)


def leave_one_out(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, group_size: int
) -> Float[Array, "batch time"]:
    """RLOO: the outcome less the mean of the group's others (arXiv:2402.14740, Eq. 7).

    0 off the mask, and for a row that is alone in its group.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    outcomes, counted = _outcomes(rewards, traj, group_size)
    count = jnp.sum(counted, axis=1, keepdims=True)
    centred = outcomes - masked_mean(outcomes, counted, axis=1)[:, None]
    # o_i - (sum - o_i) / (n - 1) = (o_i - mean) n / (n - 1)
    advantages = centred * count / jnp.maximum(count - 1, 1)
    return _to_steps(jnp.where(_differ(outcomes, counted), advantages, 0.0), traj)


def leave_one_out_log_mean(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, group_size: int
) -> Float[Array, "batch time"]:
    """Credit for a group's reward log mean exp(outcome), less the same of its others (JEPO).

    The outcomes are log-probabilities: the group earns the log of their mean probability
    (arXiv:2503.19618). For n rows A_i = n (log mean exp over all - log mean exp over the others):
    the reward is the group's, and every row has a score-function term with it, so that a loss that
    is a mean over rows needs the factor n. 0 off the mask, and for a row that is alone in its group.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    outcomes, counted = _outcomes(rewards, traj, group_size)
    count = jnp.sum(counted, axis=1, keepdims=True)
    others = counted[:, None, :] & ~jnp.eye(group_size, dtype=bool)
    without = jax.nn.logsumexp(outcomes[:, None, :], axis=2, where=others)
    whole = jax.nn.logsumexp(outcomes, axis=1, where=counted, keepdims=True)
    # log mean exp = log sum exp - log count, for all n and for the n - 1 others.
    difference = whole - without + jnp.log(jnp.maximum(count - 1, 1) / jnp.maximum(count, 1))
    return _to_steps(jnp.where(_differ(outcomes, counted), count * difference, 0.0), traj)


def _outcomes(
    rewards: Float[Array, "batch time"], traj: Trajectory, group_size: int
) -> tuple[Float[Array, "groups size"], Bool[Array, "groups size"]]:
    outcomes = jnp.sum(jnp.where(traj.mask, rewards, 0.0).astype(jnp.float32), axis=-1)
    groups = to_groups(outcomes, group_size)
    return groups, jnp.any(traj.mask, axis=-1).reshape(groups.shape)


def _differ(
    outcomes: Float[Array, "groups size"], counted: Bool[Array, "groups size"]
) -> Bool[Array, "groups 1"]:
    # Compared, not subtracted from their mean: rounding gives equal outcomes a tiny spread.
    high = jnp.max(outcomes, axis=1, keepdims=True, where=counted, initial=-jnp.inf)
    low = jnp.min(outcomes, axis=1, keepdims=True, where=counted, initial=jnp.inf)
    return high > low


def _to_steps(
    advantages: Float[Array, "groups size"], traj: Trajectory
) -> Float[Array, "batch time"]:
    return jnp.where(traj.mask, advantages.reshape(-1, 1), 0.0)
