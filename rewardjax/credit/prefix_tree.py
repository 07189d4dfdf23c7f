"""Credit from the tree that the responses to one prompt form by their shared beginnings.

The mean outcome of all responses that begin with a prefix estimates the prefix's value, without a
critic. Where responses part, the change of that value is the credit of the token that was chosen.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rewardjax.credit.groups import group_relative
from rewardjax.statistics import to_groups
from rewardjax.trajectory import Trajectory, first_step, right_pad


def prefix_tree_values(
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    outcomes: Float[Array, "batch"],
    *,
    group_size: int,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
    """V(s), the mean outcome of the group's responses that begin with s (TEMPO, arXiv:2509.18314).

    A response is a row's tokens on the mask, in order: rows are compared by their n-th acted token,
    wherever it stands, so that neither a prompt's padding nor a gap matters. A response that has
    ended shares no longer prefix. Takes O(group_size^2 time) a group.

    Args:
      tokens: what was done at each step.
      mask: on at acted steps; a row without any counts in no mean.
      outcomes: of each row.
      group_size: adjacent rows to a group.

    Returns:
      V of the prefix before each acted step, and of the prefix that ends with it; 0 off the mask.
      Where no response of the prefix chose another token the two are the same number. Their
      differences sum to the row's outcome less its group's mean, if no other row is the same.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    acted, held = (to_groups(x, group_size) for x in right_pad(tokens, mask))
    counted = jnp.any(held, axis=-1)
    time = tokens.shape[1]
    same = (acted[:, :, None] == acted[:, None]) & held[:, :, None] & held[:, None]
    # How many tokens two rows share from the start: where they first differ, and `time` if nowhere.
    shared = jnp.min(jnp.where(same, time, jnp.arange(time)), axis=-1)
    longer = shared[..., None] >= jnp.arange(time + 1)  # [groups, size, size, prefix length]
    members = longer & counted[:, None, :, None]
    total = jnp.sum(jnp.where(members, to_groups(outcomes, group_size)[:, None, :, None], 0.0), 2)
    values = (total / jnp.maximum(jnp.sum(members, axis=2), 1)).reshape(-1, time + 1)
    index = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    before, after = (jnp.take_along_axis(values, index + step, axis=1) for step in (0, 1))
    return jnp.where(mask, before, 0.0), jnp.where(mask, after, 0.0)


def prefix_tree(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    group_size: int,
    outcome_weight: float | Float[Array, ""] = 1.0,
    normalise: bool = True,
    ddof: int = 1,
    epsilon: float | Float[Array, ""] = 1e-6,
) -> Float[Array, "batch time"]:
    """TEMPO's advantage (arXiv:2509.18314); 0 off the mask.

        A_t = (w (r - mean r) + V(s_{t+1}) - V(s_t)) / (std r + epsilon)

    The temporal difference is that of `prefix_tree_values`. Where nothing branches, and after a
    response has parted from all others, this is w times `group_relative`.

    Args:
      rewards: the reward of each step; a row's outcome r is their sum.
      traj: the rewarded trajectories.
      group_size: adjacent rows to a group.
      outcome_weight: w; 0 leaves the temporal difference alone.
      normalise: divide by the group's standard deviation plus `epsilon`.
      ddof: taken off the number of rows in the standard deviation.
      epsilon: in units of reward.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    relative = group_relative(
        rewards, traj, group_size=group_size, normalise=normalise, ddof=ddof, epsilon=epsilon
    )
    # V is linear in the outcomes: a tree of the scaled ones has the scaled differences.
    outcomes = jnp.sum(jnp.where(first_step(traj.mask), relative, 0.0), axis=1)
    before, after = prefix_tree_values(traj.tokens, traj.mask, outcomes, group_size=group_size)
    return outcome_weight * relative + (after - before)
