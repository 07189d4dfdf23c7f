"""Losses on real-valued targets."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import Mean


def squared_error(
    prediction: Float[Array, "*shape"],
    target: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Mean:
    """`(prediction - target)^2` over the mask, everywhere without one."""
    difference = prediction - target
    # Masked before the square: a NaN label off the mask must not reach the gradient.
    return Mean.of((difference if mask is None else jnp.where(mask, difference, 0.0)) ** 2, mask)
