"""Preferences explained by scores that are distributions: hidden context spreads them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mean_variance_preference(
    mean: Float[Array, "*batch 2"], log_std: Float[Array, "*batch 2"]
) -> Float[Array, "*batch"]:
    """`-log Phi((m_1 - m_2) / sqrt(s_1^2 + s_2^2))`: two normal scores, the preferred one first.

    Distributional preference learning (arXiv:2312.08358), its mean-and-variance model.
    """
    variance = jnp.sum(jnp.exp(2 * log_std), axis=-1)
    difference = mean[..., 0] - mean[..., 1]
    return -jax.scipy.stats.norm.logcdf(difference * jax.lax.rsqrt(variance))
