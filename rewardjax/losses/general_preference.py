"""Preferences that need not be transitive: a skew-symmetric score of two embeddings.

Zhang et al. (arXiv:2410.02197). `-log P(first preferred)` is `bradley_terry(score / temperature)`.
"""

import jax
from jaxtyping import Array, Float

from rewardjax.losses.preference import Scalar


def preference_score(
    first: Float[Array, "*#batch doubled"],
    second: Float[Array, "*#batch doubled"],
    gates: Float[Array, "*#batch blocks"] | None = None,
) -> Float[Array, "*batch"]:
    """`s(first over second) = sum_l g_l (v_l w_l' - v_l' w_l)`, the logit of a preference.

    `(v_l, v_l')` are entries 2l and 2l + 1 of `first`, `(w_l, w_l')` those of `second`. Exchanging
    the responses turns the sign, whatever their embeddings: s(a, b) + s(b, a) = 0 and s(a, a) = 0,
    while a over b over c over a is possible. With w' constant and one block it is a difference of
    scalar scores, Bradley-Terry's. It is `<R first, second>` with R's blocks [[0, -1], [1, 0]].

    Args:
      first, second: embeddings of two responses to one prompt, of an even width.
      gates: weight of each block, the prompt's own (the paper's eigenvalues); 1 without it.

    Raises:
      ValueError: embeddings of odd width.
    """
    if first.shape[-1] % 2:
        raise ValueError(f"embeddings: expected an even width, found {first.shape[-1]}")
    # Compilers fuse `a * d - b * c` so that its two products are rounded differently; taken both ways
    # round, the sign turns to the last bit.
    blocks = 0.5 * (_blocks(first, second) - _blocks(second, first))
    return (blocks if gates is None else gates * blocks).sum(axis=-1)


def _blocks(first: Array, second: Array) -> Array:
    return first[..., 0::2] * second[..., 1::2] - first[..., 1::2] * second[..., 0::2]


def preference_table(
    embeddings: Float[Array, "*batch responses doubled"],
    gates: Float[Array, "*batch blocks"] | None = None,
) -> Float[Array, "*batch responses responses"]:
    """`preference_score` of each response (row) over each (column): one embedding a response."""
    gates = None if gates is None else gates[..., None, None, :]
    return preference_score(embeddings[..., :, None, :], embeddings[..., None, :, :], gates)


def gpo(
    log_ratio: Float[Array, "*batch"], score: Float[Array, "*batch"], *, beta: Scalar
) -> Float[Array, "*batch"]:
    """`(log_ratio - score / beta)^2`: general preference optimisation (arXiv:2410.02197).

    The step of multiplicative weights `policy ~ policy_t exp(score / beta)` as a regression, its
    log-partition function taken as 0.

    Args:
      log_ratio: of a response under the policy and under the policy that sampled it, policy_t.
      score: mean score of the response over policy_t's responses to the prompt; no gradient.
      beta: > 0.
    """
    return (log_ratio - jax.lax.stop_gradient(score) / beta) ** 2
