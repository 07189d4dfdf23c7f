"""Which questions to ask somebody: those whose answers tell most of who they are."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def gaussian_information(
    probability: Float[Array, "*batch answers"],
    mean: Float[Array, "*batch answers latent"],
    log_std: Float[Array, "*batch answers latent"],
) -> Float[Array, "*batch"]:
    """`H[z] - E H[z | answers]` in nats, every distribution taken for a normal one.

    What is known before an answer is the mixture of what will be known after it, of which the first
    two moments are kept (VPL, arXiv:2408.10075, asks the questions with the largest value).

    Args:
      probability: of each possible string of answers.
      mean, log_std: the posterior after each.
    """
    weights = probability[..., None]
    centre = jnp.sum(weights * mean, axis=-2, keepdims=True)
    variance = jnp.sum(weights * (jnp.exp(2 * log_std) + (mean - centre) ** 2), axis=-2)
    after = jnp.sum(weights * log_std, axis=-2)
    return jnp.sum(0.5 * jnp.log(variance) - after, axis=-1)
