"""Whether stated probabilities come true as often as they say."""

import numpy as np
from jaxtyping import Array, Bool, Float, Num

Probabilities = Float[Array | np.ndarray, "events"]
Outcomes = Num[Array | np.ndarray, "events"] | Bool[Array | np.ndarray, "events"]


def expected_calibration_error(
    probabilities: Probabilities, outcomes: Outcomes, bins: int = 10
) -> float:
    """The gap between stated and observed frequency, averaged over bins by their size, in [0, 1].

    Bins of equal width over [0, 1]; a probability on an inner edge belongs to the bin above it.
    Guo et al., arXiv:1706.04599, equation 3.

    Args:
      probabilities: of the event, in [0, 1].
      outcomes: 1 where the event happened, 0 where not (a label between them is averaged as it is).
      bins: how many, at least 1.

    Raises:
      ValueError: no event, a probability or an outcome outside [0, 1], or no bin.
    """
    stated, happened = _checked(probabilities, outcomes)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, found {bins}")
    index = np.minimum((stated * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=stated - happened, minlength=bins)
    return float(np.sum(np.abs(gaps)) / stated.size)


def brier(probabilities: Probabilities, outcomes: Outcomes) -> float:
    """The mean squared difference of probability and outcome, in [0, 1]; Brier (1950), two classes.

    Raises:
      ValueError: no event, or a probability or an outcome outside [0, 1].
    """
    stated, happened = _checked(probabilities, outcomes)
    return float(np.mean((stated - happened) ** 2))


def _checked(probabilities: Probabilities, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    stated = np.asarray(probabilities, np.float64)
    happened = np.asarray(outcomes, np.float64)
    if stated.size == 0:
        raise ValueError("probabilities: expected at least one event, found none")
    for name, numbers in (("probabilities", stated), ("outcomes", happened)):
        outside = ~((numbers >= 0) & (numbers <= 1))
        if np.any(outside):
            raise ValueError(f"{name}: expected values in [0, 1], found {numbers[outside][0]}")
    return stated, happened
