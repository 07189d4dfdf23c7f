"""Flow matching along straight paths: `x_t = (1 - t) x_0 + t noise`, velocity `noise - x_0`."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.losses.regression import squared_error
from rewardjax.statistics import Mean


def interpolate(
    data: Float[Array, "batch *event"],
    noise: Float[Array, "batch *event"],
    time: Float[Array, "batch"],
) -> Float[Array, "batch *event"]:
    """The points at `time` in [0, 1] on the way from data (0) to noise (1)."""
    time = jnp.expand_dims(time, tuple(range(1, data.ndim)))
    return (1.0 - time) * data + time * noise


def flow_matching_loss(
    velocity: Float[Array, "batch *event"],
    data: Float[Array, "batch *event"],
    noise: Float[Array, "batch *event"],
) -> Mean:
    """Squared error of a predicted velocity, a mean over all numbers (arXiv:2209.03003, Eq. 1)."""
    return squared_error(velocity, noise - data)
