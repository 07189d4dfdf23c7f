"""Every response that a sampler could give, where they are few: sums over them need no samples."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from rewardjax.trajectory import Prompts, Trajectory, respond


def every_response(
    vocab: int, longest: int, stop: int, pad: int = 0
) -> tuple[Int[np.ndarray, "count longest"], Bool[np.ndarray, "count longest"]]:
    """All token sequences that end with `stop` or are `longest` tokens long, and where they hold a token.

    A language model gives them probabilities that sum to 1. There are
    `sum_t (vocab - 1)^t + vocab * (vocab - 1)^(longest - 1)` for t from 0 to `longest - 2`.

    Args:
      vocab: number of token ids.
      longest: most tokens of a response, `stop` included.
      stop: the id that ends a response.
      pad: what stands behind its end.

    Raises:
      ValueError: there are more than a million sequences to look through.
    """
    if vocab**longest > 1_000_000:
        raise ValueError(
            f"vocab, longest: expected at most 1,000,000 sequences, found {vocab}^{longest}"
        )
    tokens = np.indices((vocab,) * longest).reshape(longest, -1).T.astype(np.int32)
    stopped = tokens == stop
    ended = np.cumsum(stopped, axis=1) - stopped > 0
    # One of those that differ behind the end alone.
    kept = np.all(~ended | (tokens == pad), axis=1)
    return tokens[kept], ~ended[kept]


def respond_in_every_way(prompts: Prompts, vocab: int, longest: int, stop: int) -> Trajectory:
    """Each prompt with each of `every_response`: a prompt's rows are adjacent."""
    tokens, valid = every_response(vocab, longest, stop)
    count, rows = len(tokens), prompts.tokens.shape[0]
    repeated = Prompts(
        prompts.tokens.repeat(count, axis=0),
        prompts.valid.repeat(count, axis=0),
        {name: column.repeat(count, axis=0) for name, column in prompts.info.items()},
    )
    return respond(repeated, *(jnp.tile(jnp.asarray(x), (rows, 1)) for x in (tokens, valid)))
