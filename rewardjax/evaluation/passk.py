"""What `k` samples of a prompt are worth: any of them correct, or their majority."""

from math import comb

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

Counts = int | np.integer | Int[Array | np.ndarray, "*#problems"]


def pass_at_k(n: Counts, c: Counts, k: int) -> Float[np.ndarray, "*problems"]:
    """The unbiased chance that one of `k` samples is correct: `1 - C(n-c, k) / C(n, k)`.

    Equation 1 of Chen et al. (arXiv:2107.03374), as a sum of `log1p`, so that neither binomial is
    ever formed and a small chance keeps its digits.

    Args:
      n: samples drawn for each problem; broadcasts against `c`.
      c: how many of them were correct.
      k: samples allowed, from 1 to the smallest `n`.

    Returns:
      One chance a problem, in [0, 1], of the broadcast shape; its mean is the benchmark's number.

    Raises:
      ValueError: `k` is not in 1..n, or `c` is not in 0..n.
    """
    drawn, correct = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if drawn.size and not 1 <= k <= np.min(drawn):
        raise ValueError(f"k: expected 1 to {np.min(drawn)} (the fewest samples), found {k}")
    if np.any(correct < 0) or np.any(correct > drawn):
        raise ValueError("c: expected between 0 and n correct samples in every problem")
    # Draw i fails with probability 1 - c / (n - i); it cannot fail once only correct ones are left.
    chance = np.minimum(correct[..., None] / (drawn[..., None] - np.arange(k)), 1.0)
    with np.errstate(divide="ignore"):
        all_fail = np.sum(np.log1p(-chance), axis=-1)
    return np.asarray(np.abs(np.expm1(all_fail)))


def majority_at_k(
    answers: Shaped[Array | np.ndarray, "problems samples"],
    gold: Shaped[Array | np.ndarray, "problems"],
    k: int,
    *,
    valid: Bool[Array | np.ndarray, "problems samples"] | None = None,
) -> Float[np.ndarray, "problems"]:
    """The exact chance that the most frequent of `k` answers is correct (maj@k).

    The average over every subset of `k` of the samples, without enumerating them; answers tied for
    the most votes share the credit. For an interval over problems, hand the result to
    `bootstrap_interval`. Self-consistency voting is Wang et al. (arXiv:2203.11171).

    Args:
      answers: one answer a sample, compared by equality (ids, say).
      gold: the correct answer of each problem.
      k: votes counted, from 1 to the number of samples.
      valid: off where a sample has no answer: it may be drawn, but casts no vote.

    Raises:
      ValueError: `k` is not in 1..samples.
    """
    votes, right = np.asarray(answers), np.asarray(gold)
    cast = np.ones(votes.shape, bool) if valid is None else np.asarray(valid)
    samples = votes.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"k: expected 1 to {samples} (the samples of a problem), found {k}")
    chances = np.zeros(votes.shape[0])
    for row in range(votes.shape[0]):
        names, counts = np.unique(votes[row][cast[row]], return_counts=True)
        correct = int(np.sum(counts[names == right[row]]))
        wrong = [int(count) for count in counts[names != right[row]]]
        chances[row] = _majority_chance(correct, wrong, samples - int(np.sum(counts)), k)
    return chances


def _majority_chance(correct: int, wrong: list[int], silent: int, k: int) -> float:
    """The chance that the correct answer wins `k` draws without replacement.

    `ways[t][d]` counts the ways to draw `d` samples among the others so that no wrong answer has
    more votes than the correct one and exactly `t` have as many. The counts are exact integers.
    """
    credit = 0.0
    subsets = comb(correct + sum(wrong) + silent, k)
    for top in range(1, min(correct, k) + 1):
        rest = k - top
        ways = [[comb(silent, drawn) for drawn in range(rest + 1)]]
        for count in wrong:
            ways = _add_answer(ways, count, top, rest)
        for tied, row in enumerate(ways):
            credit += comb(correct, top) * row[rest] / (subsets * (tied + 1))
    return credit


def _add_answer(ways: list[list[int]], count: int, top: int, rest: int) -> list[list[int]]:
    """`ways` with one more wrong answer, `count` of whose samples may be drawn, `top` at most."""
    most = min(count, top, rest)
    added = [[0] * (rest + 1) for _ in range(len(ways) + (most == top))]
    for tied, row in enumerate(ways):
        for votes in range(most + 1):
            choices, into = comb(count, votes), added[tied + (votes == top)]
            for drawn in range(rest + 1 - votes):
                into[drawn + votes] += choices * row[drawn]
    return added
