"""Moments of a stream of rewards, kept from batch to batch."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from rewardjax.statistics import masked_mean


@struct.dataclass
class RunningMoments:
    """What has been seen so far, in float32 scalars.

    Attributes:
      count: how many values.
      mean: their mean; 0 before any.
      m2: the sum of their squared distances from the mean.
      low: the smallest; inf before any.
      high: the largest; -inf before any.
    """

    count: Float[Array, ""]
    mean: Float[Array, ""]
    m2: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]

    @classmethod
    def init(cls) -> "RunningMoments":
        """The moments of nothing."""
        return cls(*(jnp.float32(value) for value in (0.0, 0.0, 0.0, jnp.inf, -jnp.inf)))

    def update(
        self, values: Float[Array, "*shape"], mask: Bool[Array, "*shape"] | None = None
    ) -> "RunningMoments":
        """The moments with the masked `values` added (all of them without a mask).

        Chan, Golub and LeVeque (1979): the result does not depend on how the stream was cut, up to
        rounding.
        """
        values = values.astype(jnp.float32)
        mask = jnp.ones(values.shape, bool) if mask is None else mask
        added = jnp.sum(mask).astype(jnp.float32)
        mean = masked_mean(values, mask)
        m2 = jnp.sum(jnp.where(mask, (values - mean) ** 2, 0.0))
        count = self.count + added
        share = added / jnp.maximum(count, 1.0)
        shift = mean - self.mean
        return RunningMoments(
            count=count,
            mean=self.mean + shift * share,
            m2=self.m2 + m2 + shift**2 * self.count * share,
            low=jnp.minimum(self.low, jnp.min(values, where=mask, initial=jnp.inf)),
            high=jnp.maximum(self.high, jnp.max(values, where=mask, initial=-jnp.inf)),
        )

    @property
    def std(self) -> Float[Array, ""]:
        """The standard deviation (unbiased variance); 1 with fewer than two values."""
        variance = self.m2 / jnp.maximum(self.count - 1.0, 1.0)
        return jnp.where(self.count < 2, 1.0, jnp.sqrt(variance))
