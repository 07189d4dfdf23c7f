"""What a judge decided, read strictly from its tokens, and whether it was right."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

UNPARSED = -1


def parse_verdict(
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    tags: tuple[int, ...],
    *,
    tail: int,
) -> Int[Array, "batch"]:
    """The index of the one tag that the end of a judgement names; `UNPARSED` where it is not one.

    RM-R1 (arXiv:2505.02387) looks for the tags in a judgement's last 80 characters: one has to be
    there, and the other not. A tag that comes earlier does not count, for or against.

    Args:
      tokens: token ids.
      mask: on at the judge's own tokens; a tag in the prompt is nobody's verdict.
      tags: the token id of each possible verdict.
      tail: how many of the judge's last tokens are read.

    Returns:
      0 to `len(tags) - 1`, or `UNPARSED`: no tag, several different ones, or no tokens at all.
    """
    left = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # of the judge's tokens, this one included
    read = mask & (left <= tail)
    named = jnp.stack([jnp.any(read & (tokens == tag), axis=1) for tag in tags], axis=1)
    return jnp.where(jnp.sum(named, axis=1) == 1, jnp.argmax(named, axis=1), UNPARSED)


def verdict_reward(
    verdict: Int[Array, "batch"], label: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """1 where the verdict is the label and -1 elsewhere, also where there is no verdict."""
    return jnp.where(verdict == label, 1.0, -1.0)
