"""Variational inference with diagonal Gaussians."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Scalar = float | Float[Array, ""]


def gaussian_kl(
    mean: Float[Array, "*batch latent"],
    log_std: Float[Array, "*batch latent"],
    prior_mean: Scalar | Float[Array, "latent"] = 0.0,
    prior_log_std: Scalar | Float[Array, "latent"] = 0.0,
) -> Float[Array, "*batch"]:
    """KL(q || p) in nats of two normal distributions with independent coordinates.

    `sum log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2`; p is standard by default.
    """
    scaled = jnp.exp(2 * (log_std - prior_log_std))
    shifted = ((mean - prior_mean) * jnp.exp(-jnp.asarray(prior_log_std))) ** 2
    return jnp.sum(prior_log_std - log_std + 0.5 * (scaled + shifted - 1), axis=-1)


def cyclical_weight(step: int, steps: int, *, cycles: int = 4, rise: float = 0.5) -> float:
    """A weight of the KL that starts at 0 again in each cycle, so that the latent is used (0 to 1).

    It rises as a cosine over the first `rise` of a cycle and stays at 1 over the rest (arXiv:1903.10145).

    Args:
      step: from 0.
      steps: of the run, which has `cycles` cycles.
      cycles: at least 1.
      rise: share of a cycle, above 0.
    """
    phase = (step * cycles / steps) % 1.0
    return float((1 - np.cos(np.pi * min(phase / rise, 1.0))) / 2)
