"""Kullback-Leibler divergences: per-token estimates from samples, and exact over a vocabulary.

The estimators (Schulman, "Approximating KL divergence", 2020) estimate KL(p || q) in nats at tokens
drawn from p; the first argument is the log-probability under p, the second under q.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def k1(
    logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`log p - log q`: unbiased, of either sign. As a loss its gradient has mean 0 on policy."""
    return logprobs - reference


def k2(
    logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`(log p - log q)^2 / 2`: biased and never negative; its mean gradient is that of the KL."""
    return 0.5 * (logprobs - reference) ** 2


def k3(
    logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`q/p - 1 - log(q/p)`: unbiased and never negative (GRPO, arXiv:2402.03300, Eq. 4)."""
    difference = reference - logprobs
    return jnp.expm1(difference) - difference


def full_kl(
    logits_p: Float[Array, "*shape vocabulary"], logits_q: Float[Array, "*shape vocabulary"]
) -> Float[Array, "*shape"]:
    """KL(p || q) over the last axis, in float32 nats.

    A logit of -inf rules a token out. What p rules out adds 0; what only q rules out makes the
    divergence infinite.
    """
    log_p = jax.nn.log_softmax(logits_p.astype(jnp.float32))
    log_q = jax.nn.log_softmax(logits_q.astype(jnp.float32))
    possible = jnp.logical_not(jnp.isneginf(logits_p))
    # Both operands are replaced, not the difference: inf - inf has a NaN gradient even when unused.
    difference = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)
