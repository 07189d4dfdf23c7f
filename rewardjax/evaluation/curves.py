"""Over-optimisation curves: gold and proxy reward against the distance from the first policy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Num

Samples = int | np.integer | Num[Array | np.ndarray, "*shape"]


class GoldProxyCurve(NamedTuple):
    """Rewards averaged over bins of distance, nearest first; empty bins are left out.

    Attributes:
      distance: the mean `sqrt(KL)` of the bin's points, in square roots of nats.
      gold: their mean gold reward.
      proxy: their mean proxy reward.
      points: how many points the bin holds, at least 1.
    """

    distance: Float[np.ndarray, "bins"]
    gold: Float[np.ndarray, "bins"]
    proxy: Float[np.ndarray, "bins"]
    points: Int[np.ndarray, "bins"]


def gold_proxy_curve(
    kl: Num[Array | np.ndarray, "points"],
    gold: Num[Array | np.ndarray, "points"],
    proxy: Num[Array | np.ndarray, "points"],
    bins: int = 20,
) -> GoldProxyCurve:
    """Bin points by `sqrt(KL)`, the distance of Gao et al. (arXiv:2210.10760, section 3).

    Args:
      kl: KL divergence from the first policy, in nats; an estimate below 0 counts as 0.
      gold: gold reward at each point.
      proxy: the reward that was optimised, at each point.
      bins: bins of equal width from distance 0 to the largest.

    Raises:
      ValueError: no point, a value that is not finite, or no bin.
    """
    columns = [np.asarray(column, np.float64) for column in (kl, gold, proxy)]
    if columns[0].size == 0:
        raise ValueError("kl: expected at least one point, found none")
    for name, column in zip(("kl", "gold", "proxy"), columns):
        if not np.all(np.isfinite(column)):
            raise ValueError(
                f"{name}: expected finite values, found {np.sum(~np.isfinite(column))} other"
            )
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, found {bins}")
    distance = np.sqrt(np.maximum(columns[0], 0.0))
    width = np.max(distance) / bins
    # All points at distance 0 leave no width to divide by: they are one bin.
    index = np.zeros(distance.size, int) if width == 0 else (distance / width).astype(int)
    index = np.minimum(index, bins - 1)
    count = np.bincount(index, minlength=bins)
    kept = count > 0
    averages = (
        np.bincount(index, weights=column, minlength=bins)[kept] / count[kept]
        for column in (distance, columns[1], columns[2])
    )
    return GoldProxyCurve(*averages, points=count[kept])


def best_of_n_kl(n: Samples) -> Float[np.ndarray, "*shape"]:
    """KL divergence of best-of-n from the policy it samples, in nats: `log n - (n - 1) / n`.

    Exact where no two samples tie, an upper bound otherwise (arXiv:2401.01879).

    Raises:
      ValueError: an `n` below 1.
    """
    samples = np.asarray(n, np.float64)
    if not np.all(samples >= 1):
        raise ValueError(f"n: expected at least 1 sample, found {np.min(samples)}")
    return np.asarray(np.log(samples) - (samples - 1) / samples)


def at_kl(
    kl: Num[Array | np.ndarray, "points"], values: Num[Array | np.ndarray, "points"], budget: float
) -> float:
    """What a run measured when its KL divergence first reached `budget` (nats).

    Interpolated between the evaluations before and after. A run that never got so far gives its
    value at its largest KL, one that began beyond the budget its first value.

    Raises:
      ValueError: no point, or a KL that is not finite.
    """
    distance, measured = np.asarray(kl, np.float64), np.asarray(values, np.float64)
    if distance.size == 0 or not np.all(np.isfinite(distance)):
        raise ValueError(f"kl: expected at least one point, all finite, found {distance}")
    reached = np.flatnonzero(distance >= budget)
    if reached.size == 0:
        return float(measured[np.argmax(distance)])
    after = int(reached[0])
    around = slice(max(after - 1, 0), after + 1)
    return float(np.interp(budget, distance[around], measured[around]))


def overoptimisation(gold: np.ndarray, proxy: np.ndarray) -> dict[str, float]:
    """What a proxy's optimisation did to gold, from two curves over the same evaluations.

    Returns:
      `peak_gold`: the largest gold; `gold_drop`: how far the last one lies below it, at least 0;
      `proxy_after_peak`: what the proxy still gained from there on; `mean_gold`: the curve's mean.
    """
    peak = int(np.argmax(gold))
    return {
        "peak_gold": float(gold[peak]),
        "gold_drop": float(gold[peak] - gold[-1]),
        "proxy_after_peak": float(proxy[-1] - proxy[peak]),
        "mean_gold": float(np.mean(gold)),
    }
