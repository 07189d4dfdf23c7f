"""Masked statistics, and means that carry their denominator.

Every loss and every metric is a `Mean`: a sum and the weight that will divide it. Two micro-batches,
two packed rows or two devices add their sums and their weights; the division happens once, at the
end, so how a batch was cut can never change a value.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Num, Shaped


@struct.dataclass
class Mean:
    """A weighted mean kept as its sum and its weight (both float32, of equal shape)."""

    total: Float[Array, "*shape"]
    weight: Float[Array, "*shape"]

    @classmethod
    def of(cls, values: Shaped[Array, "*shape"], mask: Array | None = None) -> "Mean":
        """The mean of `values` where `mask` is on (everywhere without one); `mask` may broadcast."""
        values = jnp.asarray(values, jnp.float32)
        weights = jnp.ones_like(values) if mask is None else jnp.broadcast_to(mask, values.shape)
        weights = weights.astype(jnp.float32)
        return cls(jnp.sum(jnp.where(weights > 0, values, 0.0) * weights), jnp.sum(weights))

    @property
    def value(self) -> Float[Array, "*shape"]:
        """`total / weight`; 0, never NaN, where the weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1.0, self.weight))

    def scale(self, factor: float | Float[Array, ""]) -> "Mean":
        """The mean times `factor`: a coefficient scales the sum and leaves the weight."""
        return Mean(self.total * factor, self.weight)

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)


def masked_mean(
    values: Num[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Mean over `axis` where `mask` is on; 0 where nothing is."""
    count = jnp.sum(mask, axis=axis)
    total = jnp.sum(jnp.where(mask, values, 0).astype(jnp.float32), axis=axis)
    return total / jnp.maximum(count, 1)


def masked_std(
    values: Num[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    axis: int | tuple[int, ...] | None = None,
    *,
    ddof: int = 0,
) -> Float[Array, "..."]:
    """Standard deviation over `axis` where `mask` is on; 0 with no more than `ddof` values."""
    mean = jnp.mean(values, axis=axis, keepdims=True, where=mask)
    squares = jnp.where(mask, (values - jnp.where(jnp.isfinite(mean), mean, 0.0)) ** 2, 0.0)
    count = jnp.sum(mask, axis=axis)
    return jnp.sqrt(jnp.sum(squares, axis=axis) / jnp.maximum(count - ddof, 1))


def masked_whiten(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"], *, epsilon: float = 1e-8
) -> Float[Array, "*shape"]:
    """Shift and scale to mean 0 and standard deviation 1 over the mask; 0 off the mask."""
    centred = values - masked_mean(values, mask)
    return jnp.where(mask, centred / (masked_std(values, mask) + epsilon), 0.0)


def log_mean_exp(values: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "..."]:
    """`log(mean(exp(values)))` over `axis`, without overflow."""
    return jax.nn.logsumexp(values, axis=axis) - jnp.log(values.shape[axis])


def unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors scaled to length 1; one of zeros stays as it is."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))


def ranks(values: Num[Array, "n"]) -> Float[Array, "n"]:
    """Places in rising order, from 0; ties share the mean of theirs."""
    ordered = jnp.sort(values)
    below, upto = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (below + upto - 1) / 2


def pearson(a: Num[Array, "n"], b: Num[Array, "n"]) -> Float[Array, ""]:
    """Correlation, -1 to 1; 0 where all values of one are equal."""
    x, y = (values - jnp.mean(values) for values in (a, b))
    scale = jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))
    return jnp.sum(x * y) / jnp.where(scale > 0, scale, 1.0)


def spearman(a: Num[Array, "n"], b: Num[Array, "n"]) -> Float[Array, ""]:
    """Correlation of the ranks, -1 to 1; 0 where all values of one are equal."""
    return pearson(ranks(a), ranks(b))


def to_groups(
    values: Shaped[Array, "batch ..."], group_size: int
) -> Shaped[Array, "groups size ..."]:
    """Fold `[batch, ...]` into `[batch // group_size, group_size, ...]`: a group's rows are adjacent.

    Raises:
      ValueError: the batch is not a whole number of groups.
    """
    if values.shape[0] % group_size:
        raise ValueError(
            f"group_size: the batch of {values.shape[0]} rows is not a multiple of {group_size}"
        )
    return values.reshape(-1, group_size, *values.shape[1:])
