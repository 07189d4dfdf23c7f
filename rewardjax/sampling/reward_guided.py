"""Reward-guided decoding: a language model proposes tokens, a score of what is written so far chooses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Tokens = Int[Array, "rows time"]
Valid = Bool[Array, "rows time"]


def reward_guided_decode(
    logits: Callable[[Tokens, Valid], Float[Array, "rows time vocab"]],
    score: Callable[[Tokens, Valid], Float[Array, "rows"]],
    tokens: Tokens,
    valid: Valid,
    *,
    start: int,
    top_k: int,
    alpha: float | Float[Array, ""],
    sign: float | Float[Array, ""],
    stop: int,
) -> tuple[Tokens, Valid]:
    """Greedily continue every row by `argmax_v sign * score([y, v]) + alpha log p(v | y)`.

    The maximum is over the `top_k` most likely tokens. It is the reward-guided decoding of REFORM
    (arXiv:2507.06419): with `sign` -1 it looks for text that the score dislikes though the language
    model finds it likely, with 1 for text that it likes. The score reads unfinished text. All of the
    candidates of a step are scored at once.

    Args:
      logits: of a language model; entry `[:, t]` is of the token at t, given those before it.
      score: of text of which what is `valid` is there, on rows x `top_k` texts.
      tokens: texts to be continued, all from the same column on; what stands there is overwritten.
      valid: where they hold a token, left of `start`.
      start: the first column to be written; the last one is the last of `tokens`.
      top_k: candidates a step.
      alpha: weight of the log-probability, in the score's unit per nat.
      sign: 1 to raise the score, -1 to lower it.
      stop: the token that ends a row and belongs to it.

    Returns:
      `tokens` and `valid` of the continued rows; 0 behind `stop`.
    """
    rows, time = tokens.shape
    columns = jnp.arange(time)

    def step(carry, column):
        tokens, valid, alive = carry
        here = columns == column
        logprobs = jax.nn.log_softmax(logits(tokens, valid)[:, column], axis=-1)
        likely, proposed = jax.lax.top_k(logprobs, top_k)
        extended = jnp.where(here, proposed[..., None], tokens[:, None])
        there = jnp.broadcast_to((valid | here)[:, None], extended.shape)
        found = score(extended.reshape(-1, time), there.reshape(-1, time)).reshape(rows, top_k)
        best = jnp.argmax(sign * found + alpha * likely, axis=1)
        token = jnp.take_along_axis(proposed, best[:, None], axis=1)
        written = here & alive[:, None]
        tokens = jnp.where(written, token, tokens)
        return (tokens, valid | written, alive & (token[:, 0] != stop)), None

    before = columns < start
    carry = jnp.where(before, tokens, 0), valid & before, jnp.ones(rows, bool)
    (tokens, valid, _), _ = jax.lax.scan(step, carry, jnp.arange(start, time))
    return tokens, valid
