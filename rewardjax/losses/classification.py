"""Losses on class labels."""

import optax
from jaxtyping import Array, Float


def binary_cross_entropy(
    logits: Float[Array, "*shape"], labels: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`-y log s(x) - (1 - y) log s(-x)` an item, in nats; labels in [0, 1] may be soft."""
    return optax.sigmoid_binary_cross_entropy(logits, labels)
