"""Best-of-n: sample several responses, keep the one that a reward likes most."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.statistics import to_groups
from rewardjax.trajectory import Trajectory


def best_of_n(traj: Trajectory, scores: Float[Array, "batch"], n: int) -> Trajectory:
    """Of each group of `n` adjacent rows, the row with the largest score (the first of equals).

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    best = jnp.argmax(to_groups(scores, n), axis=1)
    rows = jnp.arange(best.shape[0]) * n + best
    return jax.tree.map(lambda x: x[rows], traj)
