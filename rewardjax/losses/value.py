"""The critic's loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import Mean


def value_loss(
    values: Float[Array, "batch time"],
    old_values: Float[Array, "batch time"],
    targets: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    clip: float | Float[Array, ""] | None = None,
) -> Mean:
    """Half the squared error of the critic over acted steps.

    With `clip`, the larger of that and the error of `values` held within `clip` of `old_values`
    (PPO's clipped value loss, as in arXiv:2005.12729, Section 3).
    """
    errors = (values - targets) ** 2
    if clip is not None:
        held = old_values + jnp.clip(values - old_values, -clip, clip)
        errors = jnp.maximum(errors, (held - targets) ** 2)
    return Mean.of(0.5 * errors, mask)
