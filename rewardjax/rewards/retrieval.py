"""Rewards read together with those of similar examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import unit


def cosines(
    a: Float[Array, "batch width"], b: Float[Array, "memory width"]
) -> Float[Array, "batch memory"]:
    """Cosine similarities; 0 with a vector of zeros."""
    return unit(a) @ unit(b).T


def fused_rewards(
    rewards: Float[Array, "batch"],
    similarity: Float[Array, "batch memory"],
    remembered: Float[Array, "memory"],
    *,
    count: int = 5,
    threshold: float = 0.9,
    allowed: Bool[Array, "batch memory"] | None = None,
) -> Float[Array, "batch"]:
    """`(r + sum_i s_i r_i) / (1 + sum_i s_i)` over the nearest examples: RewardFusion (arXiv:2309.16155).

    Args:
      rewards: r, of the items themselves.
      similarity: s, of each item with each remembered example.
      remembered: the examples' rewards.
      count: most examples for an item, the most similar ones.
      threshold: only examples more similar than this, at least 0, count.
      allowed: off where an example may not be used, such as the item itself; all may without it.
    """
    near = similarity if allowed is None else jnp.where(allowed, similarity, -1.0)
    weight, index = jax.lax.top_k(near, min(count, near.shape[1]))
    weight = jnp.where(weight > threshold, weight, 0.0)
    total = rewards + jnp.sum(weight * remembered[index], axis=1)
    return total / (1.0 + jnp.sum(weight, axis=1))
