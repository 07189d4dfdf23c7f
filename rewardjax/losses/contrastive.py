"""Losses that set representations or scores apart without labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.statistics import unit

Views = Float[Array, "batch width"]
Scalar = float | Float[Array, ""]


def info_nce(a: Views, b: Views, *, temperature: Scalar) -> Float[Array, "batch"]:
    """`-log exp(s_ii / tau) / sum_j exp(s_ij / tau)`, s the cosines of `a`'s rows with `b`'s.

    SimCSE (arXiv:2104.08821, Eq. 1) where both are views of one input by different dropout.

    Args:
      a, b: row i of both belongs together.
      temperature: tau, above 0.
    """
    logits = unit(a) @ unit(b).T / temperature
    return jax.nn.logsumexp(logits, axis=-1) - jnp.diagonal(logits)


def sinkhorn(
    scores: Float[Array, "batch prototypes"], *, epsilon: Scalar, iterations: int = 3
) -> Float[Array, "batch prototypes"]:
    """Soft assignments of rows to prototypes that all get a like share of them (arXiv:2006.09882, Eq. 5).

    `exp(scores / epsilon)`, scaled in turn so that columns have one sum and rows sum to 1; the rows do so
    exactly. No gradient passes.
    """
    logs = jax.lax.stop_gradient(scores) / epsilon
    for _ in range(iterations):
        logs = jax.nn.log_softmax(jax.nn.log_softmax(logs, axis=0), axis=1)
    return jnp.exp(logs)


def swapped_prediction(
    a: Views,
    b: Views,
    prototypes: Float[Array, "prototypes width"],
    *,
    temperature: Scalar,
    epsilon: Scalar,
) -> Float[Array, "batch"]:
    """SwAV (arXiv:2006.09882, Eq. 2): a view's assignment is predicted from the other view.

    Args:
      a, b: two views of each row's input.
      prototypes: trained along; only their directions count.
      temperature: of the predictions.
      epsilon: of the assignments (`sinkhorn`).
    """
    sides = [unit(view) @ unit(prototypes).T for view in (a, b)]
    codes = [sinkhorn(side, epsilon=epsilon) for side in sides]
    predicted = [jax.nn.log_softmax(side / temperature, axis=-1) for side in sides]
    crossed = codes[0] * predicted[1] + codes[1] * predicted[0]
    return -jnp.sum(crossed, axis=-1) / 2


def separation(scores: Float[Array, "groups responses"]) -> Float[Array, "groups"]:
    """`2 / k^2 sum_{i < j} s(|r_i - r_j|)`: how well scores tell a prompt's k responses apart.

    MetaRM's difference objective (arXiv:2405.00438; arXiv:2401.06080, section 4), s the logistic function.
    """
    count = scores.shape[-1]
    first, second = jnp.triu_indices(count, 1)
    apart = jax.nn.sigmoid(jnp.abs(scores[:, first] - scores[:, second]))
    return 2.0 / count**2 * jnp.sum(apart, axis=-1)
