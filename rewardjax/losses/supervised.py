"""Imitation of given responses."""

from jaxtyping import Array, Bool, Float

from rewardjax.losses.aggregate import Aggregate, per_token
from rewardjax.statistics import Mean


def cross_entropy(
    logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    aggregate: Aggregate = per_token,
) -> Mean:
    """Negative log-likelihood of the masked tokens, in nats."""
    return aggregate(-logprobs, mask)
