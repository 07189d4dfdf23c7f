"""How per-token values become one number: every function here is `(values, mask) -> Mean`.

The choice weighs long rows against short ones, so losses take it as an argument. Rows with nothing
acted count nowhere, and the results of two parts of a batch add up to that of the whole.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import Mean, masked_mean

Aggregate = Callable[[Float[Array, "batch time"], Bool[Array, "batch time"]], Mean]


def per_token(values: Float[Array, "batch time"], mask: Bool[Array, "batch time"]) -> Mean:
    """Every acted token weighs the same (DAPO's token-level loss, arXiv:2503.14476, Sec. 3.3)."""
    return Mean.of(values, mask)


def per_sequence(values: Float[Array, "batch time"], mask: Bool[Array, "batch time"]) -> Mean:
    """Every row weighs the same: the mean of the rows' means (GRPO, arXiv:2402.03300, Eq. 3)."""
    return Mean.of(masked_mean(values, mask, axis=-1), jnp.any(mask, axis=-1))


def by_constant(length: float) -> Aggregate:
    """Rows' sums over one constant, so that no length bias remains (Dr. GRPO, arXiv:2503.20783).

    Args:
      length: what each row's sum is divided by, in tokens; usually the longest response allowed.

    Raises:
      ValueError: `length` is not positive.
    """
    if length <= 0:
        raise ValueError(f"length: expected a positive number of tokens, found {length}")

    def aggregate(values: Float[Array, "batch time"], mask: Bool[Array, "batch time"]) -> Mean:
        sums = jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32), axis=-1)
        return Mean.of(sums / length, jnp.any(mask, axis=-1))

    return aggregate
