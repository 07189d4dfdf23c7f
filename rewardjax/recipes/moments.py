"""Running statistics of a trajectory's column, as a learner."""

import jax.numpy as jnp

from rewardjax.recipes.policy_gradient import Learner
from rewardjax.rewards import RunningMoments


def outcome_moments(column: str) -> Learner:
    """Running mean, deviation and range of `info[column]` `[batch]`, updated before they are read.

    Writes `{column}_mean`, `_std`, `_low` and `_high`, each repeated for every row.
    """

    def observe(state: RunningMoments, traj, key):
        state = state.update(traj.info[column], jnp.any(traj.mask, axis=1))
        found = {"mean": state.mean, "std": state.std, "low": state.low, "high": state.high}
        rows = traj.info[column].shape
        columns = {f"{column}_{name}": jnp.broadcast_to(x, rows) for name, x in found.items()}
        return state, traj.with_info(**columns), {}

    return Learner(lambda key: RunningMoments.init(), observe)
