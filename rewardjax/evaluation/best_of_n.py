"""What choosing the best of n samples by a proxy is worth, for every n at once."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Num
from scipy.special import gammaln

Rewards = Num[Array | np.ndarray, "prompts samples"]


def best_of_n_curve(
    proxy: Rewards, gold: Rewards, counts: Sequence[int]
) -> Float[np.ndarray, "prompts counts"]:
    """The expected gold reward of the sample that the proxy likes most, of n drawn from N.

    Exact over all subsets: the sample of rank i from below (from 0) is the best of n with
    probability `C(i, n - 1) / C(N, n)` (the estimator of WebGPT, arXiv:2112.09332). Samples
    that the proxy ties are equally likely to be taken. With `gold = proxy` it is the curve of what is
    optimised.

    Args:
      proxy: the reward that chooses.
      gold: the reward that is measured.
      counts: values of n, each from 1 to N.

    Raises:
      ValueError: no prompt, shapes that differ, a value that is not finite, or a count out of range.
    """
    chosen_by, measured = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
    if chosen_by.shape != measured.shape or chosen_by.size == 0:
        raise ValueError(
            f"proxy, gold: expected one shape, prompts by samples, found {chosen_by.shape} and"
            f" {measured.shape}"
        )
    for name, values in (("proxy", chosen_by), ("gold", measured)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name}: expected finite values")
    total = chosen_by.shape[1]
    for n in counts:
        if not 1 <= n <= total:
            raise ValueError(f"counts: expected 1 to {total} samples, found {n}")
    weights = np.stack([_chance_of_best(total, n) for n in counts], axis=1)
    ranked = np.stack([_by_rank(p, g) for p, g in zip(chosen_by, measured)])
    return ranked @ weights


def _chance_of_best(total: int, n: int) -> np.ndarray:
    rank = np.arange(total)
    able = rank >= n - 1
    low = np.where(able, rank, n - 1)
    return np.where(able, np.exp(_log_choose(low, n - 1) - _log_choose(total, n)), 0.0)


def _log_choose(n, k):
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _by_rank(proxy: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Gold in the order of the proxy, worst first; tied samples all get their mean."""
    order = np.argsort(proxy, kind="stable")
    _, block = np.unique(proxy[order], return_inverse=True)
    means = np.bincount(block, weights=gold[order]) / np.bincount(block)
    return means[block]
