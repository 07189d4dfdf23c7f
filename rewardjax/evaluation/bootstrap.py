"""Bootstrap intervals of a mean, plain and paired.

The percentile interval of Efron (1979): resample the values with replacement, take the mean of each
resample, read off the quantiles. The random stream is fixed, so a recorded interval can be
recomputed to the last digit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Num
from scipy import stats

Values = Sequence[float | int | np.number] | Num[Array | np.ndarray, "n"]

RESAMPLES = 9999
# scipy draws a whole batch of resamples at once; this many numbers of it are in memory.
BATCH_NUMBERS = 2_000_000


class Interval(NamedTuple):
    """A mean and the two ends of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: Values, level: float = 0.95, *, seed: int = 0) -> Interval:
    """The mean of `values` (one dimension, at least one) and its bootstrap interval.

    One value, or values without spread, give `low == high == mean`.

    Args:
      values: the independent observations, such as one number a seed or one a prompt.
      level: the interval's coverage, between 0 and 1, both excluded.
      seed: of the resampling.

    Raises:
      ValueError: no value, more than one dimension, a value that is not finite, or a bad `level`.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(
            f"values: expected one dimension with at least one value, found shape {numbers.shape}"
        )
    if not np.all(np.isfinite(numbers)):
        raise ValueError(
            f"values: expected finite numbers, found {np.sum(~np.isfinite(numbers))} of "
            f"{numbers.size} that are not"
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    if np.ptp(numbers) == 0:
        constant = float(numbers[0])
        return Interval(constant, constant, constant)
    found = stats.bootstrap(
        (numbers,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // numbers.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(np.mean(numbers)), float(found.low), float(found.high))


def paired_bootstrap(a: Values, b: Values, level: float = 0.95, *, seed: int = 0) -> Interval:
    """The mean of `a - b`, paired by position, and its bootstrap interval.

    Pairing takes out what both share (a seed's data, a prompt's difficulty), which an interval of
    each on its own would count as noise.

    Raises:
      ValueError: `a` and `b` differ in shape, or as `bootstrap_interval` does.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"a, b: expected equal shapes, found {left.shape} and {right.shape}")
    return bootstrap_interval(left - right, level, seed=seed)
