"""Two ratings on an ordinal scale, each a distribution, and which is higher (arXiv:2602.12660).

A rating is given by logits over the levels 1 .. N, lowest first; the two are independent.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

UNKNOWN = -1  # the region of a response that nobody labelled


def log_probability_higher(
    first: Float[Array, "*batch levels"], second: Float[Array, "*batch levels"]
) -> Float[Array, "*batch"]:
    """`log P(S_first > S_second) = log sum_k p(k) Q(k - 1)`, Q the second's cumulative distribution.

    Float32, by cumulative sums of probabilities in the log domain. A tie counts for neither.
    """
    higher = jax.nn.log_softmax(first.astype(jnp.float32), axis=-1)[..., 1:]
    other = jax.nn.log_softmax(second.astype(jnp.float32), axis=-1)
    below = jax.lax.cumlogsumexp(other, axis=other.ndim - 1)[..., :-1]
    return jax.nn.logsumexp(higher + below, axis=-1)


def ordinal(
    chosen: Float[Array, "*batch levels"],
    rejected: Float[Array, "*batch levels"],
    cells: Bool[Array, "*batch levels levels"] | None = None,
) -> Float[Array, "*batch"]:
    """`-log P(S_chosen > S_rejected)`, or of those pairs of ratings that `cells` allow.

    Args:
      chosen, rejected: logits over the levels.
      cells: on where (chosen's level, rejected's level) agrees with what is known of the pair, such
        as `region_cells`; a pair of which nothing is allowed has loss 0 and no gradient.
    """
    if cells is None:
        return -log_probability_higher(chosen, rejected)
    known = jnp.any(cells, axis=(-2, -1))
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (chosen, rejected))
    joint = p[..., :, None] + q[..., None, :]
    allowed = jnp.where(known[..., None, None], cells, True)
    return jnp.where(known, -jax.nn.logsumexp(joint, axis=(-2, -1), where=allowed), 0.0)


def region_cells(
    chosen: Int[Array, "*batch"],
    rejected: Int[Array, "*batch"],
    *,
    regions: int,
    levels: int,
    flooded: bool = True,
) -> Bool[Array, "*batch levels levels"]:
    """Where two ratings may be whose regions (bad, normal, good) were labelled.

    Each region is an equal share of the levels, the lowest first. The block of the two labels;
    `flooded`, only the part of it in which the chosen response's rating is higher, so that two
    responses of one region are still told apart. A pair with an `UNKNOWN` region may be wherever
    the chosen response's rating is higher.

    Args:
      chosen, rejected: regions, 0 .. regions - 1, or `UNKNOWN`.
      regions: how many there are.
      levels: how many levels ratings have.
      flooded: off, the whole block (no ordering of responses with the same label).

    Raises:
      ValueError: the levels are not a multiple of the regions.
    """
    if levels % regions:
        raise ValueError(f"levels: expected a multiple of {regions} regions, found {levels}")
    region = jnp.arange(levels) // (levels // regions)
    block = (region == chosen[..., None])[..., :, None] & (region == rejected[..., None])[
        ..., None, :
    ]
    higher = jnp.arange(levels)[:, None] > jnp.arange(levels)
    known = (chosen != UNKNOWN) & (rejected != UNKNOWN)
    inside = block & higher if flooded else block
    return jnp.where(known[..., None, None], inside, higher)


def rating_moments(
    logits: Float[Array, "*batch levels"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Mean and variance of a rating whose levels are worth 1 .. N."""
    levels = jnp.arange(1, logits.shape[-1] + 1, dtype=jnp.float32)
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    mean = jnp.sum(p * levels, axis=-1)
    return mean, jnp.sum(p * (levels - mean[..., None]) ** 2, axis=-1)
