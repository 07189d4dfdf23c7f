"""A moving average of what each kind of row earns, kept beside the policy."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rewardjax.credit.role_baseline import ema_update
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.statistics import Mean
from rewardjax.trajectory import Trajectory


def ema_baseline(
    entry: Callable[[Trajectory], Int[Array, "batch"]],
    entries: int,
    *,
    counted: Callable[[Trajectory], Bool[Array, "batch"]],
    decay: float = 0.95,
) -> Learner:
    """A learner that writes `info["baseline"]` `[batch]`, then learns from the same rows.

    The baseline that a row reads is the one before its batch, so that it does not depend on the
    row's own outcome and leaves the gradient unbiased.

    Args:
      entry: the kind of each row (game and role), from 0.
      entries: number of kinds.
      counted: on at one row of each episode and kind: an episode counts once.
      decay: of the average, per episode; it starts at 0.
    """

    def observe(baselines, traj, key):
        metrics = {str(i): Mean.of(baselines[i]) for i in range(entries)}
        return baselines, traj.with_info(baseline=baselines[entry(traj)]), metrics

    def update(baselines, traj, rewards, key):
        outcomes = jnp.sum(jnp.where(traj.mask, rewards, 0.0), axis=1)
        rows = entry(traj), outcomes, counted(traj)
        return ema_update(baselines, *rows, decay=decay), {}

    return Learner(lambda key: jnp.zeros(entries), observe, update)
