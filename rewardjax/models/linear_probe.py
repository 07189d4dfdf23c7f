"""Ridge regression of several targets on features, each target on the rows where it is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_ridge(
    features: Float[Array, "rows width"],
    targets: Float[Array, "rows objectives"],
    observed: Bool[Array, "rows objectives"],
    penalty: float | Float[Array, ""],
) -> Float[Array, "objectives width"]:
    """`argmin_w |H w - r|^2 + penalty |w|^2` for each objective, in closed form, without intercept.

    Args:
      features: H.
      targets: r; what it holds where it is not observed is not looked at.
      observed: the rows of each objective.
      penalty: above 0, the same for all.
    """

    def one(target: Float[Array, "rows"], known: Bool[Array, "rows"]) -> Float[Array, "width"]:
        rows = jnp.where(known[:, None], features, 0.0)
        gram = jnp.matmul(rows.T, rows, precision="highest")
        moments = jnp.matmul(jnp.where(known, target, 0.0), rows, precision="highest")
        return jnp.linalg.solve(gram + penalty * jnp.eye(rows.shape[1]), moments)

    return jax.vmap(one, in_axes=1)(targets, observed)


def validated_ridge(
    features: Float[Array, "rows width"],
    targets: Float[Array, "rows objectives"],
    observed: Bool[Array, "rows objectives"],
    held_out: Bool[Array, "rows"],
    penalties: Float[Array, "penalties"],
) -> tuple[Float[Array, "objectives width"], Float[Array, "objectives"]]:
    """`masked_ridge` with each objective's penalty chosen by the squared error on held-out rows.

    The probe of ArmoRM (arXiv:2406.12845).

    Args:
      features, targets, observed: as above.
      held_out: rows that choose; the others are fitted.
      penalties: what is tried.

    Returns:
      The weights, and the penalty of each objective (the first of equals).
    """
    fitted = observed & ~held_out[:, None]
    weights = jax.vmap(lambda p: masked_ridge(features, targets, fitted, p))(penalties)
    error = jnp.einsum("nd,pkd->pnk", features, weights, precision="highest") - targets
    judged = observed & held_out[:, None]
    best = jnp.argmin(jnp.sum(jnp.where(judged, error, 0.0) ** 2, axis=1), axis=0)
    return weights[best, jnp.arange(targets.shape[1])], penalties[best]
