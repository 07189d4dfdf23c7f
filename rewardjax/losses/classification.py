"""Losses on class labels."""

import optax
from jaxtyping import Array, Float


def binary_cross_entropy(
    logits: Float[Array, "*shape"], labels: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`-y log s(x) - (1 - y) log s(-x)` an item, in nats; labels in [0, 1] may be soft."""
    return optax.sigmoid_binary_cross_entropy(logits, labels)


def soft_cross_entropy(
    logits: Float[Array, "*shape classes"], targets: Float[Array, "*shape classes"]
) -> Float[Array, "*shape"]:
    """`-sum_k q_k log softmax(x)_k` an item, in nats; the targets q sum to 1."""
    return optax.softmax_cross_entropy(logits, targets)
