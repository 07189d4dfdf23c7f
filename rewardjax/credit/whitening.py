"""Credit on the scale of the batch: advantages with mean 0 and deviation 1 over acted steps.

These read the whole batch, so they run before it is cut into micro-batches.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.credit.groups import group_relative
from rewardjax.credit.returns import Scalar, discounted_returns
from rewardjax.statistics import masked_whiten
from rewardjax.trajectory import Trajectory

Credit = Callable[..., Float[Array, "batch time"]]
"""`(rewards [batch, time], traj, *, settings) -> advantages [batch, time]`, 0 off the mask."""


def whitened(credit: Credit) -> Credit:
    """The same credit, whitened over the batch's acted steps; all 0 where they are all equal."""

    @functools.wraps(credit)
    def whiten(
        rewards: Float[Array, "batch time"], traj: Trajectory, **settings: Any
    ) -> Float[Array, "batch time"]:
        advantages = credit(rewards, traj, **settings)
        high = jnp.max(advantages, where=traj.mask, initial=-jnp.inf)
        low = jnp.min(advantages, where=traj.mask, initial=jnp.inf)
        # Rounding gives equal values a tiny spread, which whitening would blow up.
        return jnp.where(high > low, masked_whiten(advantages, traj.mask), 0.0)

    return whiten


def batch_normalised(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, discount: Scalar = 1.0
) -> Float[Array, "batch time"]:
    """REINFORCE++ (arXiv:2501.03262): whitened returns of per-token rewards, without groups."""
    return whitened(discounted_returns)(rewards, traj, discount=discount)


def reinforce_plus_plus_baseline(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, group_size: int
) -> Float[Array, "batch time"]:
    """REINFORCE++ with a baseline (arXiv:2501.03262): outcome less group mean, whitened.

    The scale is that of the whole batch, not of each group.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    return whitened(group_relative)(rewards, traj, group_size=group_size, normalise=False)
