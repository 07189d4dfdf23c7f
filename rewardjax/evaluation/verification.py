"""How well scores tell correct solutions from wrong ones, alone and as a choice among several."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import stats

from rewardjax.evaluation.bootstrap import bootstrap_interval
from rewardjax.statistics import Mean, masked_mean

Scores = Float[Array | np.ndarray, "questions candidates"]
Correct = Bool[Array | np.ndarray, "questions candidates"]


def roc_auc(
    scores: Float[Array | np.ndarray, "n"], correct: Bool[Array | np.ndarray, "n"]
) -> float:
    """The chance that a correct solution is scored above a wrong one, in [0, 1]; ties count 0.5.

    The area under the ROC curve, from the Mann-Whitney statistic. It is 0.5 where all solutions are
    correct, or all are wrong: there is nothing to tell apart.

    Raises:
      ValueError: a score is NaN.
    """
    numbers, labels = np.asarray(scores, np.float64), np.asarray(correct)
    if np.any(np.isnan(numbers)):
        raise ValueError("scores: expected numbers, found NaN")
    positive = int(np.sum(labels))
    negative = labels.size - positive
    if not positive or not negative:
        return 0.5
    ranks = np.sum(stats.rankdata(numbers)[labels])
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def ranking_auc(
    scores: Float[Array, "n"], positive: Bool[Array, "n"], counted: Bool[Array, "n"]
) -> Mean:
    """`roc_auc` on the device, among the counted; its weight is 0 where one side is empty.

    A mean over pairs: it takes memory for `n * n` comparisons.
    """
    pairs = (positive & counted)[:, None] & (~positive & counted)[None, :]
    above = scores[:, None] > scores[None, :]
    ties = scores[:, None] == scores[None, :]
    # One mean over pairs for each batch, whatever their number.
    share = masked_mean(above + 0.5 * ties, pairs)
    return Mean.of(share, jnp.any(pairs))


def best_candidate(scores: Scores, correct: Correct) -> Float[np.ndarray, "questions"]:
    """Whether the candidate with the highest score is correct; candidates that tie share the choice."""
    numbers, labels = np.asarray(scores), np.asarray(correct)
    top = numbers == np.max(numbers, axis=1, keepdims=True)
    return np.sum(top & labels, axis=1) / np.sum(top, axis=1)


def verification(scores: Scores, correct: Correct, training_share: float) -> dict[str, float]:
    """A verifier on the candidates of held-out questions (arXiv:2110.14168, Sec. 4.2).

    Args:
      scores: predictions of correctness; above 1/2 means that the solution is taken to be correct.
      correct: whether each candidate is.
      training_share: of the training solutions, how many are correct: the constant guess of
        `majority` is chosen on these.

    Returns:
      `accuracy` with its 95% bootstrap interval over questions (whose candidates are not
      independent), `accuracy_low` to `accuracy_high`; `majority`, the accuracy of one guess for
      all; `lift`, what accuracy has above it; `auc`; `best_of_n`, how often the highest score is a
      correct candidate's; `single`, how often one drawn at random is; `oracle`, how often any is;
      `gain`, what `best_of_n` has above `single`. All in [0, 1] but the two differences.

    Raises:
      ValueError: there is no question, or a score is NaN.
    """
    numbers, labels = np.asarray(scores), np.asarray(correct)
    if not numbers.size:
        raise ValueError(f"scores: expected questions and candidates, found {numbers.shape}")
    auc = roc_auc(numbers.reshape(-1), labels.reshape(-1))
    hits = (numbers > 0.5) == labels
    accuracy, low, high = bootstrap_interval(np.mean(hits, axis=1))
    majority = float(np.mean(labels == (training_share > 0.5)))
    best = float(np.mean(best_candidate(numbers, labels)))
    single = float(np.mean(labels))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "majority": majority,
        "lift": accuracy - majority,
        "auc": auc,
        "best_of_n": best,
        "single": single,
        "oracle": float(np.mean(np.any(labels, axis=1))),
        "gain": best - single,
    }
