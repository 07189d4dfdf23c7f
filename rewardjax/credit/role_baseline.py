"""Role-conditioned advantages (SPIRAL, arXiv:2506.24119): the outcome less what the role usually gets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rewardjax.trajectory import Trajectory


def baseline_advantages(
    rewards: Float[Array, "batch time"], traj: Trajectory
) -> Float[Array, "batch time"]:
    """The row's outcome less `info["baseline"]` `[batch]`, at every acted step; 0 off the mask."""
    outcomes = jnp.sum(jnp.where(traj.mask, rewards, 0.0).astype(jnp.float32), axis=1)
    return jnp.where(traj.mask, (outcomes - traj.info["baseline"])[:, None], 0.0)


def ema_update(
    baselines: Float[Array, "entries"],
    entry: Int[Array, "batch"],
    outcomes: Float[Array, "batch"],
    counted: Bool[Array, "batch"],
    *,
    decay: float,
) -> Float[Array, "entries"]:
    """b <- decay b + (1 - decay) outcome, for one row after the other, without bias correction.

    Args:
      baselines: one for each kind of row.
      entry: the kind of each row.
      outcomes: of each row.
      counted: rows that are off change nothing.
      decay: in [0, 1].
    """

    def one(baselines, row):
        entry, outcome, counted = row
        new = decay * baselines[entry] + (1 - decay) * outcome
        return baselines.at[entry].set(jnp.where(counted, new, baselines[entry])), None

    return jax.lax.scan(one, baselines, (entry, outcomes, counted))[0]
