"""How often a scorer ranks the better response first: RewardBench-style protocols."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Num, Shaped

Labels = Sequence[str] | Sequence[int] | Shaped[Array | np.ndarray, "pairs"]


def win_rate(a: Num[Array | np.ndarray, "pairs"], b: Num[Array | np.ndarray, "pairs"]) -> float:
    """The share of pairs where `a` is above `b`, in [0, 1]; a tie counts one half.

    Raises:
      ValueError: there is no pair, or a score is NaN.
    """
    return float(np.mean(_wins(a, b)))


def pairwise_accuracy(
    scores_chosen: Num[Array | np.ndarray, "pairs"],
    scores_rejected: Num[Array | np.ndarray, "pairs"],
    subsets: Labels | None = None,
) -> float:
    """The share of pairs whose chosen response has the higher score, in [0, 1]; ties count 0.5.

    With `subsets` (one label a pair) it is the unweighted mean of the subsets' accuracies, so that
    a large subset does not outweigh a small one (RewardBench, arXiv:2403.13787, averages its
    sections this way).

    Raises:
      ValueError: there is no pair, a score is NaN, or `subsets` has another length.
    """
    if subsets is None:
        return win_rate(scores_chosen, scores_rejected)
    return float(np.mean(list(subset_accuracy(scores_chosen, scores_rejected, subsets).values())))


def subset_accuracy(
    scores_chosen: Num[Array | np.ndarray, "pairs"],
    scores_rejected: Num[Array | np.ndarray, "pairs"],
    subsets: Labels,
) -> dict[str, float]:
    """The pairwise accuracy of each subset by its label, labels sorted; ties count 0.5.

    Raises:
      ValueError: there is no pair, a score is NaN, or `subsets` has another length.
    """
    wins, labels = _wins(scores_chosen, scores_rejected), np.asarray(subsets)
    if labels.shape != wins.shape:
        raise ValueError(
            f"subsets: expected one label for each of {wins.size} pairs, found {labels.size}"
        )
    return {str(label): float(np.mean(wins[labels == label])) for label in np.unique(labels)}


def best_of_n_accuracy(
    scores: Num[Array | np.ndarray, "prompts candidates"], correct: int = 0
) -> float:
    """The share of prompts whose correct candidate is scored strictly highest, in [0, 1].

    A tie at the top earns nothing. `correct` is the column of the correct candidate.

    Raises:
      ValueError: there is no prompt, a score is NaN, or `correct` is not a column.
    """
    at_top = _at_top(scores, correct)
    return float(np.mean(at_top[:, correct] & (np.sum(at_top, axis=1) == 1)))


def best_of_n_accuracy_shared(
    scores: Num[Array | np.ndarray, "prompts candidates"], correct: int = 0
) -> float:
    """As `best_of_n_accuracy`, but candidates tied at the top share the credit, in [0, 1].

    A correct candidate tied with `m - 1` others earns `1 / m`: what breaking the tie at random
    earns on average (RewardBench 2, arXiv:2506.01937).

    Raises:
      ValueError: there is no prompt, a score is NaN, or `correct` is not a column.
    """
    at_top = _at_top(scores, correct)
    return float(np.mean(at_top[:, correct] / np.sum(at_top, axis=1)))


def _wins(a: Num[Array | np.ndarray, "pairs"], b: Num[Array | np.ndarray, "pairs"]) -> np.ndarray:
    left, right = np.asarray(a), np.asarray(b)
    if left.size == 0:
        raise ValueError("scores: expected at least one pair, found none")
    if np.any(np.isnan(left)) or np.any(np.isnan(right)):
        raise ValueError("scores: expected numbers, found NaN")
    return np.where(left == right, 0.5, left > right)


def _at_top(scores: Num[Array | np.ndarray, "prompts candidates"], correct: int) -> np.ndarray:
    numbers = np.asarray(scores)
    if numbers.size == 0:
        raise ValueError(f"scores: expected prompts and candidates, found shape {numbers.shape}")
    if np.any(np.isnan(numbers)):
        raise ValueError("scores: expected numbers, found NaN")
    if not 0 <= correct < numbers.shape[1]:
        raise ValueError(
            f"correct: expected a column from 0 to {numbers.shape[1] - 1}, found {correct}"
        )
    return numbers == np.max(numbers, axis=1, keepdims=True)
