"""Comparison by several factors in order of importance, without weights (HERON, arXiv:2309.02632)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def lexicographic_compare(
    z_i: Float[Array, "*batch factors"],
    z_j: Float[Array, "*batch factors"],
    signs: Sequence[int],
    margins: Float[Array, "factors"],
) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
    """Which of two is better by the first factor in which they differ by more than its margin.

    Exchanging the two exchanges the label's sign. With margins the relation is not transitive. A
    factor that is NaN in either decides nothing.

    Args:
      z_i: the first's factors, the most important first.
      z_j: the second's.
      signs: 1 for a factor whose higher values are better, -1 for a cost.
      margins: differences up to these, in each factor's unit, count as none; at least 0.

    Returns:
      The label, 1 (the first is better), -1 (the second) or 0 (a tie); and the index of the factor
      that decided, `factors` for a tie.

    Raises:
      ValueError: the numbers of factors, signs and margins differ, or a sign is not 1 or -1.
    """
    factors = z_i.shape[-1]
    if not len(signs) == margins.shape[0] == factors:
        raise ValueError(
            f"signs, margins: expected {factors}, one a factor,"
            f" found {len(signs)} and {margins.shape[0]}"
        )
    if any(sign not in (1, -1) for sign in signs):
        raise ValueError(f"signs: expected 1 or -1 each, found {tuple(signs)}")
    lead = jnp.asarray(signs, jnp.float32) * (z_i - z_j)
    decides = jnp.abs(lead) > margins
    level = jnp.where(jnp.any(decides, axis=-1), jnp.argmax(decides, axis=-1), factors)
    # A last column of 0 is what a tie reads.
    leads = jnp.concatenate([jnp.sign(lead), jnp.zeros_like(lead[..., :1])], axis=-1)
    label = jnp.take_along_axis(leads, level[..., None], axis=-1)[..., 0]
    return label.astype(jnp.int32), level


def lexicographic_margins(
    std: Float[Array, "factors"], multiples: Sequence[float], floor: float = 0.0
) -> Float[Array, "factors"]:
    """Margins as multiples of each factor's standard deviation, so that no unit matters.

    Args:
      std: of the factors, in a batch or all that was seen; 0 where a factor never varied.
      multiples: of the deviations, at least 0 each.
      floor: least deviation counted, in the factors' units: a policy that has become consistent
        leaves deviations that would make noise decide.

    Raises:
      ValueError: a multiple is negative, or there is not one a factor.
    """
    if len(multiples) != std.shape[0] or min(multiples) < 0:
        raise ValueError(
            f"multiples: expected {std.shape[0]} of at least 0, found {tuple(multiples)}"
        )
    return jnp.asarray(multiples, jnp.float32) * jnp.maximum(std, floor)
