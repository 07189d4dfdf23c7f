"""Rewards of tokens, and the same rewards told later: by chunks, at the end, or taken back there.

All map `[batch, time]` to `[batch, time]`, 0 off the mask; sums are over acted steps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rewardjax.trajectory import last_step

Scalar = float | Float[Array, ""]
Steps = Float[Array, "batch time"]
Mask = Bool[Array, "batch time"]


def clipped_log_ratio(
    logprobs: Steps, reference_logprobs: Steps, mask: Mask, *, scale: Scalar, clip: Scalar
) -> Steps:
    """`clip(scale (log p - log reference), -clip, clip)`: RTO's token reward (arXiv:2404.18922).

    With p a policy trained by DPO, `beta (log p - log reference)` is the reward of the token for which that
    policy is optimal; `scale` takes beta's place.

    Args:
      logprobs: of the actions under p, in nats.
      reference_logprobs: the same under the policy from which p was trained.
      mask: acted steps.
      scale: reward per nat.
      clip: largest reward of a step, either way; a bound on what a long response can gather.
    """
    difference = jnp.where(mask, logprobs - reference_logprobs, 0.0).astype(jnp.float32)
    return jnp.clip(scale * difference, -clip, clip)


def in_chunks(values: Steps, mask: Mask, size: int) -> Steps:
    """Each chunk's sum at its last step: `size` acted steps from a row's first, the last chunk perhaps fewer.

    Raises:
      ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1 step, found {size}")
    ends = mask & ((jnp.cumsum(mask, axis=-1) % size == 0) | last_step(mask))
    so_far = jnp.cumsum(jnp.where(mask, values, 0.0).astype(jnp.float32), axis=-1)
    # The end before each step, one column on: column 0 is before all steps, where nothing is gathered.
    columns = jnp.arange(1, mask.shape[1] + 1)
    before = jax.lax.cummax(jnp.where(ends, columns, 0), axis=1)
    before = jnp.pad(before, ((0, 0), (1, 0)))[:, :-1]
    gathered = jnp.take_along_axis(jnp.pad(so_far, ((0, 0), (1, 0))), before, axis=1)
    return jnp.where(ends, so_far - gathered, 0.0)


def at_end(values: Steps, mask: Mask) -> Steps:
    """A row's sum at its last acted step."""
    total = jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32), axis=-1, keepdims=True)
    return jnp.where(last_step(mask), total, 0.0)


def taken_back(values: Steps, mask: Mask) -> Steps:
    """The values, and at the last acted step less their sum: a shaping, with which every row's sum is 0."""
    values = jnp.where(mask, values, 0.0).astype(jnp.float32)
    return values - at_end(values, mask)
