"""Length bias taken out of predicted ratings, by as much of the verbosity rating as is needed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax.statistics import spearman

GRID = np.arange(96, dtype=np.float32) / 100


def verbosity_penalties(
    ratings: Float[Array, "rows objectives"],
    verbosity: int,
    *,
    threshold: float = 0.03,
    grid: Float[Array | np.ndarray, "candidates"] = GRID,
) -> Float[Array, "objectives"]:
    """How much of the verbosity rating to take off each objective's (ArmoRM, arXiv:2406.12845).

    For each objective the smallest candidate after which its Spearman correlation with verbosity is at
    most `threshold`; 1 where none is, and for verbosity itself, which is so removed.

    Args:
      ratings: predicted ratings of reference responses.
      verbosity: the column that rates verbosity.
      threshold: of a correlation, signed: what falls with verbosity is left as it is.
      grid: candidates, rising.
    """
    candidates, length = jnp.asarray(grid), ratings[:, verbosity]

    def after(penalty):
        left = ratings - penalty * length[:, None]
        return jax.vmap(spearman, in_axes=(1, None))(left, length)

    enough = jax.lax.map(after, candidates) <= threshold
    found = jnp.where(jnp.any(enough, axis=0), candidates[jnp.argmax(enough, axis=0)], 1.0)
    return found.at[verbosity].set(1.0)


def debiasing(
    penalties: Float[Array, "objectives"], verbosity: int
) -> Float[Array, "objectives objectives"]:
    """The matrix T by which `ratings @ T` are `r_k - penalty_k r_verbosity`."""
    return jnp.eye(penalties.shape[0]).at[verbosity].add(-penalties)
