"""Credit for denoising steps by what each changed (TurningPoint-GRPO, arXiv:2602.06422).

The reward of a step is dense: d_k = R_k - R_{k-1}, with R_k the reward of finishing
deterministically after k stochastic steps, so that a row's rewards sum to what its stochastic steps
gained in all. A turning point is a step at which the row begins to move the way it ends up going; it
gets all that was gained from there on. A row's acted steps are adjacent columns.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import masked_mean, masked_std, to_groups
from rewardjax.trajectory import Trajectory, first_step, returns_to_go


def stepwise_group_relative(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    group_size: int,
    epsilon: float | Float[Array, ""] = 1e-6,
) -> Float[Array, "batch time"]:
    """Each step's own reward against the same step of the group's other rows; 0 off the mask.

    `(r - mean) / (std + epsilon)` for each column, with the population's standard deviation. A step
    at which the group's rewards are all equal gets 0, exactly.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    values, mask = (to_groups(x, group_size) for x in (rewards.astype(jnp.float32), traj.mask))
    centred = values - masked_mean(values, mask, axis=1)[:, None]
    spread = masked_std(values, mask, axis=1)[:, None]
    # Compared, not subtracted from their mean: rounding gives equal rewards a tiny spread.
    high = jnp.max(values, axis=1, keepdims=True, where=mask, initial=-jnp.inf)
    low = jnp.min(values, axis=1, keepdims=True, where=mask, initial=jnp.inf)
    differ = mask & (high > low)
    advantages = jnp.where(differ, centred / (spread + epsilon), 0.0)
    return advantages.reshape(rewards.shape)


def turning_points(
    rewards: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    consistent: bool = True,
    trend: bool = True,
) -> Bool[Array, "batch time"]:
    """Where a row begins to move the way it ends up going.

    With D the row's sum of rewards and s_k = sign(d_k) sign(D): s_{k-1} < 0 and s_k > 0, and if
    `consistent` also sign(d_k) sign(what is gained after k) > 0. The first step, which has none before
    it, is one where the latter holds. A sign of 0 makes no turning point, so the last step is
    none if `consistent`.

    Args:
      rewards: d_k of each step.
      mask: on at acted steps.
      consistent: ask that what follows moves the same way.
      trend: compare with the row's total; False asks for d_{k-1} d_k < 0 alone.
    """
    rewards = jnp.where(mask, rewards, 0.0)
    to_go = returns_to_go(rewards, mask)
    own = jnp.sign(rewards)
    agrees = own * jnp.sign(to_go - rewards) > 0
    relative = own * jnp.sign(jnp.sum(rewards, axis=1, keepdims=True))
    before, before_own = (jnp.pad(x, ((0, 0), (1, 0)))[:, :-1] for x in (relative, own))
    turns = (before < 0) & (relative > 0) if trend else before_own * own < 0
    if consistent:
        turns = turns & agrees
    return mask & jnp.where(first_step(mask), agrees, turns)


def balanced(
    points: Bool[Array, "batch time"], bonus: Float[Array, "batch time"]
) -> Bool[Array, "batch time"]:
    """As many of the points with positive `bonus` as with negative, those with the largest |bonus|.

    Where one side is empty all points stay. Equal ones are taken in the order of rows, then steps.
    """
    sides = [points & (bonus > 0), points & (bonus < 0)]
    count = jnp.minimum(*(jnp.sum(side) for side in sides))

    def largest(side):
        size = jnp.where(side, jnp.abs(bonus), -jnp.inf).ravel()
        rank = jnp.argsort(jnp.argsort(-size, stable=True), stable=True).reshape(side.shape)
        return side & (rank < count)

    return jnp.where(count > 0, largest(sides[0]) | largest(sides[1]), points)


def turning_point(
    rewards: Float[Array, "batch time"],
    traj: Trajectory,
    *,
    group_size: int,
    consistent: bool = True,
    trend: bool = True,
    balance: bool = True,
    additive: bool = False,
    epsilon: float | Float[Array, ""] = 1e-6,
) -> Float[Array, "batch time"]:
    """`stepwise_group_relative` credit in which turning points own all that is gained from them on.

    Args:
      rewards: d_k of each step.
      traj: the rewarded trajectories.
      group_size: adjacent rows to a group.
      consistent, trend: see `turning_points`.
      balance: keep as many turning points in rows that gain as in rows that lose (`balanced`, over
        the batch, by the row's sum).
      additive: add the long-term reward to d_k instead of putting it in its place.
      epsilon: in units of reward.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    rewards = jnp.where(traj.mask, rewards, 0.0).astype(jnp.float32)
    points = turning_points(rewards, traj.mask, consistent=consistent, trend=trend)
    if balance:
        total = jnp.sum(rewards, axis=1, keepdims=True)
        points = balanced(points, jnp.broadcast_to(total, rewards.shape))
    long_term = returns_to_go(rewards, traj.mask) + (rewards if additive else 0.0)
    rewards = jnp.where(points, long_term, rewards)
    return stepwise_group_relative(rewards, traj, group_size=group_size, epsilon=epsilon)
